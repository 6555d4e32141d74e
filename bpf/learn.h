/* SPDX-License-Identifier: GPL-2.0-only */
/* From a client: the flow that is known, or the backend that is chosen and,
 * where the service wants it, remembered.
 */
#pragma once

#include "flow.h"
#include "forward.h"
#include "parse.h"
#include "select.h"

enum learning {
	LEARN_NOTHING,
	LEARN_OPENING,
	LEARN_FLOW,
};

static __always_inline enum learning what_to_learn(const struct packet *p, const struct service *s)
{
	if (!keeps_flows(s))
		return LEARN_NOTHING;
	if (p->what == WHAT_SYN)
		return needs_entry(s) ? LEARN_OPENING : LEARN_NOTHING;
	return p->what == WHAT_TCP ? LEARN_NOTHING : LEARN_FLOW;
}

/* Chooses for p->service, into p->backend; GO_ON if the packet can be sent there. */
static __always_inline int choose_sendable(struct xdp_md *ctx, struct packet *p,
					   const struct service *s,
					   __u32 retry)
{
	struct backend *backend;

	p->backend = choose(p, retry);
	backend = backend_of(p->backend);
	return backend ? sendable(ctx, p, s, backend) : VERDICT_NO_BACKEND;
}

/* nat: the entry for replies, for the first choice whose entry is no one else's. */
static __always_inline int claim_choice(struct xdp_md *ctx, struct packet *p,
					const struct service *s,
					__u32 claim)
{
	int verdict = claim_return(claim);

	for (__u32 retry = 1; retry <= RETURN_TRIES; retry++) {
		if (verdict != VERDICT_RETURN_TAKEN)
			return verdict;
		verdict = choose_sendable(ctx, p, s, retry);
		if (verdict != GO_ON)
			return verdict;
		verdict = claim_return(claim);
	}
	return verdict;
}

static __noinline int remember(struct packet *p, const struct service *s, __u32 learning)
{
	struct flow flow = {
		.backend = p->backend,
		.frontend = p->frontend,
		.seen = p->now,
		.hop = bpf_ntohs(p->source_port),
	};
	long failed;

	if (learning == LEARN_OPENING)
		failed = put_opening(p->family, &p->tuple, NULL, &flow);
	else
		failed = put_flow(p->family, &p->tuple, &flow);
	if (failed)
		return needs_entry(s) ? VERDICT_NO_ROOM : GO_ON;
	count_new_flow(p);
	return GO_ON;
}

/* A packet without a flow. GO_ON: p->backend is where it goes, and what there is to learn is learnt. */
__attribute__((noinline)) int open_flow(struct xdp_md *ctx)
{
	struct packet *p = this_packet();
	struct service *s = p ? service_of(p->service) : NULL;
	__u32 learning, claim;
	int verdict;

	if (!p || !s)
		return VERDICT_NO_BACKEND;
	p->source_port = 0;
	make_draw(p, s);
	verdict = choose_sendable(ctx, p, s, 0);
	if (verdict != GO_ON)
		return verdict;
	learning = what_to_learn(p, s);
	if (learning == LEARN_NOTHING)
		return s->forward == FORWARD_FULLNAT ? VERDICT_NO_FLOW : GO_ON;
	if (!gate_open(s->id, s->gate, p->now))
		return needs_entry(s) ? VERDICT_GATED : GO_ON;
	claim = learning == LEARN_OPENING ? CLAIM_OPENING : CLAIM_FLOW;
	if (s->forward == FORWARD_FULLNAT)
		verdict = claim_port(p, claim);
	else if (s->forward == FORWARD_NAT)
		verdict = claim_choice(ctx, p, s, claim);
	return verdict == GO_ON ? remember(p, s, learning) : verdict;
}

/* The entry for this flow's replies, in either map, unless the key is another's by now. */
static __noinline struct flow *own_return(struct packet *p)
{
	struct flow *entry;

	if (!reply_tuple(p, &p->reply))
		return NULL;
	entry = find_return(p->family, &p->reply, &p->theirs);
	if (!entry)
		entry = find_opening(p->family, &p->reply, SIDE_BACKEND, &p->theirs);
	return entry && same_tuple(&p->theirs, &p->tuple) ? entry : NULL;
}

/* FIN and RST from the client, on its flow and on the entry for replies. */
static __noinline void follow_ending(struct packet *p, struct flow *flow, const struct service *s)
{
	struct flow *back;

	flow->state |= p->ending;
	if (is_over(flow->state, s))
		end_flow(flow);
	back = translates(s) ? own_return(p) : NULL;
	if (back)
		back->state |= flow->state;
}

/* Once a tick: the entry is fresh, and so is the one for replies. False: that one is another's. */
static __noinline bool refresh(struct packet *p, struct flow *flow, const struct service *s)
{
	if (translates(s) && claim_return(CLAIM_ASSERT) == VERDICT_RETURN_TAKEN)
		return false;
	flow->seen = p->now;
	return true;
}

static __always_inline void forget(struct flow *flow)
{
	if (!(flow->state & FLOW_CLOSED))
		count_live(flow->backend, -1);
}

/* The handshake is over: both entries move to where a flood of SYNs cannot evict them. */
static __always_inline bool promote(struct packet *p, const struct flow *opening,
				    const struct service *s)
{
	struct flow flow = *opening, *back;

	flow.seen = p->now;
	if (translates(s)) {
		if (claim_return(CLAIM_FLOW) != GO_ON)
			return false;
		back = flow.state ? own_return(p) : NULL;
		if (back)
			back->state = flow.state;
	}
	if (put_flow(p->family, &p->tuple, &flow))
		return false;
	drop_opening(p->family, &p->tuple, SIDE_CLIENT);
	return true;
}

static __always_inline void abandon(struct packet *p, struct flow *opening,
				    const struct service *s)
{
	forget(opening);
	if (translates(s) && own_return(p))
		drop_opening(p->family, &p->reply, SIDE_BACKEND);
	drop_opening(p->family, &p->tuple, SIDE_CLIENT);
}

/* Does the entry stand, and can the packet be sent where it says? NO_FLOW: it does not stand. */
static __always_inline int take_up(struct xdp_md *ctx, struct packet *p, const struct flow *flow,
				   struct route *r)
{
	if (!stands(p, flow, r))
		return VERDICT_NO_FLOW;
	if (p->fragment && r->service->forward == FORWARD_FULLNAT)
		return VERDICT_FRAGMENT; /* its ports, which are not read, may be another flow's */
	p->source_port = bpf_htons(flow->hop);
	return sendable(ctx, p, r->service, r->backend);
}

/* The client's next packet of a half-open flow. False: its entry counts as not there. */
static __always_inline bool step(struct packet *p, struct flow *opening, const struct service *s)
{
	if (p->what == WHAT_ACK)
		return promote(p, opening, s);
	if (p->ending & FLOW_RESET) {
		abandon(p, opening, s);
		return true;
	}
	opening->seen = p->now;
	if (p->ending)
		follow_ending(p, opening, s);
	return true;
}

/* A half-open flow. GO_ON: p->backend is where the packet goes; NO_FLOW: there is none (any more). */
__attribute__((noinline)) int open_further(struct xdp_md *ctx)
{
	struct packet *p = this_packet();
	struct route r = {};
	struct flow *flow;
	int verdict;

	flow = p ? find_opening(p->family, &p->tuple, SIDE_CLIENT, NULL) : NULL;
	if (!p || !flow)
		return VERDICT_NO_FLOW;
	verdict = take_up(ctx, p, flow, &r);
	if (verdict == GO_ON && !step(p, flow, r.service))
		verdict = VERDICT_NO_FLOW;
	if (verdict == VERDICT_NO_FLOW) {
		forget(flow);
		drop_opening(p->family, &p->tuple, SIDE_CLIENT);
	}
	return verdict;
}

/* No flow is known: half-open, or new. GO_ON: p->backend is where it goes. */
static __noinline int without_flow(struct xdp_md *ctx, struct packet *p)
{
	struct service *s = service_of(p->service);
	int verdict;

	if (!s)
		return VERDICT_NO_BACKEND;
	if (p->fragment && s->forward == FORWARD_FULLNAT)
		return VERDICT_FRAGMENT;
	if (opens(p, s)) {
		verdict = open_further(ctx);
		if (verdict != VERDICT_NO_FLOW)
			return verdict;
	}
	return open_flow(ctx);
}

/* The known flow. GO_ON: p->backend is where it goes; NO_FLOW: there is none (any more). */
static __always_inline int with_flow(struct xdp_md *ctx, struct packet *p)
{
	struct flow *flow = find_flow(p->family, &p->tuple);
	struct route r = {};
	int verdict;

	if (!flow)
		return VERDICT_NO_FLOW;
	verdict = take_up(ctx, p, flow, &r);
	if (verdict == GO_ON && flow->seen != p->now && !refresh(p, flow, r.service))
		verdict = VERDICT_NO_FLOW;
	if (verdict == VERDICT_NO_FLOW) {
		forget(flow);
		drop_flow(p->family, &p->tuple);
	} else if (verdict == GO_ON && p->ending) {
		follow_ending(p, flow, r.service);
	}
	return verdict;
}

/* Where the packet goes, into p->backend. NOT_OURS: no frontend wants it. */
static __always_inline int find_way(struct xdp_md *ctx, struct packet *p)
{
	bool table_first = p->kinds & ADDRESS_TABLE_FIRST;
	int verdict = table_first ? find_frontend(p, &p->tuple) : GO_ON;
	struct service *s;

	if (verdict != GO_ON)
		return verdict;
	s = table_first ? service_of(p->service) : NULL;
	if (!s || keeps_flows(s)) {
		verdict = with_flow(ctx, p);
		if (verdict != VERDICT_NO_FLOW)
			return verdict;
	}
	verdict = table_first ? GO_ON : find_frontend(p, &p->tuple);
	return verdict == GO_ON ? without_flow(ctx, p) : verdict;
}

static __noinline int forward(struct xdp_md *ctx, struct packet *p)
{
	struct backend *backend;
	struct service *s;
	int verdict;

	p->now = bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
	verdict = find_way(ctx, p);
	if (verdict != GO_ON)
		return verdict;
	s = service_of(p->service);
	backend = backend_of(p->backend);
	if (!s || !backend)
		return VERDICT_NO_BACKEND;
	verdict = deliver(ctx, p, s, backend);
	if (verdict == VERDICT_FORWARDED)
		count_request(p->service, p->backend, p->bytes);
	return verdict;
}
