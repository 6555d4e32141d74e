/* SPDX-License-Identifier: GPL-2.0-only */
/* What is remembered of a 5-tuple: flows, half-open flows, and the entries by
 * which replies of nat and fullnat find their way back. Two families, two sets
 * of maps; this is the only file that knows it.
 */
#pragma once

#include "count.h"
#include "maps.h"
#include "parse.h"
#include "select.h"

/* Written by whole words: the kernel's hash reads words, and waits for stores of parts. */
static __always_inline void words4(struct flow4_key *key, __u32 saddr, __u32 daddr, __u32 ports,
				   __u8 proto, __u8 side)
{
	__u32 *word = (__u32 *)key;

	word[0] = saddr;
	word[1] = daddr;
	word[2] = ports;
	word[3] = proto | (__u32)side << 8;
}

static __always_inline void key4(struct flow4_key *key, const struct flow6_key *t, __u8 side)
{
	words4(key, t->saddr.v4, t->daddr.v4, *(__u32 *)&t->sport, t->proto, side);
}

static __always_inline void key6(struct flow6_key *key, const struct flow6_key *t, __u8 side)
{
	*key = *t;
	key->side = side;
}

/* The tuple of the opposite direction. */
static __always_inline void reversed(struct flow6_key *to, const struct flow6_key *t)
{
	to->saddr = t->daddr;
	to->daddr = t->saddr;
	to->sport = t->dport;
	to->dport = t->sport;
	to->proto = t->proto;
	to->side = 0;
	to->zero = 0;
}

static __always_inline struct flow *find_flow(__u8 family, const struct flow6_key *t)
{
	struct flow4_key key;

	if (family == 6)
		return bpf_map_lookup_elem(&flows6, t);
	key4(&key, t, 0);
	return bpf_map_lookup_elem(&flows4, &key);
}

static __always_inline long put_flow(__u8 family, const struct flow6_key *t, const struct flow *flow)
{
	struct flow4_key key;

	if (family == 6)
		return bpf_map_update_elem(&flows6, t, flow, BPF_ANY);
	key4(&key, t, 0);
	return bpf_map_update_elem(&flows4, &key, flow, BPF_ANY);
}

static __noinline void drop_flow(__u8 family, const struct flow6_key *t)
{
	struct flow4_key key;

	if (family == 6) {
		bpf_map_delete_elem(&flows6, t);
		return;
	}
	key4(&key, t, 0);
	bpf_map_delete_elem(&flows4, &key);
}

/* An entry of `returns`, or of `opening`: its flow, and the client's tuple if that is asked for. */
static __always_inline struct flow *entry4(struct return4 *e, struct flow6_key *client)
{
	if (!e)
		return NULL;
	if (client) {
		__builtin_memset(client, 0, sizeof(*client));
		client->saddr.v4 = e->client.saddr;
		client->daddr.v4 = e->client.daddr;
		client->sport = e->client.sport;
		client->dport = e->client.dport;
		client->proto = e->client.proto;
	}
	return &e->flow;
}

static __always_inline struct flow *entry6(struct return6 *e, struct flow6_key *client)
{
	if (!e)
		return NULL;
	if (client)
		*client = e->client;
	return &e->flow;
}

static __always_inline struct flow *find_return(__u8 family, const struct flow6_key *t,
						struct flow6_key *client)
{
	struct flow4_key key;

	if (family == 6)
		return entry6(bpf_map_lookup_elem(&returns6, t), client);
	key4(&key, t, 0);
	return entry4(bpf_map_lookup_elem(&returns4, &key), client);
}

static __noinline struct flow *find_opening(__u8 family, const struct flow6_key *t, __u8 side,
					     struct flow6_key *client)
{
	struct flow4_key four;
	struct flow6_key six;

	if (family == 6) {
		key6(&six, t, side);
		return entry6(bpf_map_lookup_elem(&opening6, &six), client);
	}
	key4(&four, t, side);
	return entry4(bpf_map_lookup_elem(&opening4, &four), client);
}

/* The client's side (`client` NULL), or the backend's, which must not be there yet. */
static __noinline long put_opening(__u8 family, const struct flow6_key *t,
				   const struct flow6_key *client, const struct flow *flow)
{
	__u8 side = client ? SIDE_BACKEND : SIDE_CLIENT;
	__u64 flags = client ? BPF_NOEXIST : BPF_ANY;
	struct flow4_key four;
	struct flow6_key six;

	if (family == 6) {
		struct return6 value = { .flow = *flow };

		key6(&six, t, side);
		if (client)
			value.client = *client;
		return bpf_map_update_elem(&opening6, &six, &value, flags);
	}
	struct return4 value = { .flow = *flow };

	key4(&four, t, side);
	if (client)
		key4(&value.client, client, 0);
	return bpf_map_update_elem(&opening4, &four, &value, flags);
}

static __noinline long put_return(__u8 family, const struct flow6_key *t,
				  const struct flow6_key *client, const struct flow *flow)
{
	struct flow4_key key;

	if (family == 6) {
		struct return6 value = { .client = *client, .flow = *flow };

		return bpf_map_update_elem(&returns6, t, &value, BPF_NOEXIST);
	}
	struct return4 value = { .flow = *flow };

	key4(&key, t, 0);
	key4(&value.client, client, 0);
	return bpf_map_update_elem(&returns4, &key, &value, BPF_NOEXIST);
}

static __noinline void drop_opening(__u8 family, const struct flow6_key *t, __u8 side)
{
	struct flow4_key four;
	struct flow6_key six;

	if (family == 6) {
		key6(&six, t, side);
		bpf_map_delete_elem(&opening6, &six);
		return;
	}
	key4(&four, t, side);
	bpf_map_delete_elem(&opening4, &four);
}

static __always_inline void drop_return(__u8 family, const struct flow6_key *t)
{
	struct flow4_key key;

	if (family == 6) {
		bpf_map_delete_elem(&returns6, t);
		return;
	}
	key4(&key, t, 0);
	bpf_map_delete_elem(&returns4, &key);
}

/* ---- what a service wants remembered ---- */

static __always_inline bool keeps_flows(const struct service *s)
{
	return s->forward == FORWARD_FULLNAT || !(s->flags & SERVICE_FLOWS_OFF);
}

static __always_inline bool translates(const struct service *s)
{
	return s->forward == FORWARD_NAT || s->forward == FORWARD_FULLNAT;
}

/* Could the table alone not find the backend, or the reply its way? */
static __always_inline bool needs_entry(const struct service *s)
{
	return translates(s) || s->balance != BALANCE_HASH;
}

/* Are half-open flows of this packet's kind remembered? */
static __always_inline bool opens(const struct packet *p, const struct service *s)
{
	return needs_entry(s) && keeps_flows(s) && p->tuple.proto == IPPROTO_TCP && !p->fragment;
}

static __always_inline void end_flow(struct flow *flow)
{
	if (flow->state & FLOW_CLOSED)
		return;
	flow->state |= FLOW_CLOSED;
	count_live(flow->backend, -1);
}

static __always_inline bool is_over(__u8 state, const struct service *s)
{
	if (state & FLOW_RESET)
		return true;
	if (!(state & FLOW_CLIENT_FIN))
		return false;
	return state & FLOW_BACKEND_FIN || !translates(s);
}

/* No packet for more than `patience` ticks. Another CPU, or a packet since, may be ahead of `now`. */
static __always_inline bool is_idle(const struct flow *flow, __u32 now, __u32 patience)
{
	__s32 ticks = now - flow->seen;

	return ticks > 0 && (__u32)ticks > patience;
}

/* Whom an entry speaks of, all of them there. */
struct route {
	struct frontend *frontend;
	struct service *service;
	struct backend *backend;
};

static __always_inline bool find_route(const struct flow *flow, struct route *r)
{
	r->frontend = frontend_of(flow->frontend);
	r->backend = backend_of(flow->backend);
	if (!r->frontend || !r->backend)
		return false;
	r->service = service_of(r->frontend->service);
	return r->service;
}

/* Does the entry still speak for this packet? Sets the packet's ids if so. */
static __always_inline bool stands(struct packet *p, const struct flow *flow, struct route *r)
{
	bool opens_anew = p->what == WHAT_SYN;
	__u32 patience;

	if (!find_route(flow, r))
		return false;
	patience = p->tuple.proto == IPPROTO_TCP ? r->service->tcp_idle : r->service->udp_idle;
	if (is_idle(flow, p->now, flow->state & FLOW_CLOSED ? settings.closing : patience))
		return false;
	if (opens_anew && (flow->state & FLOW_CLOSED || r->backend->flags & BACKEND_NO_NEW))
		return false;
	if (down_for_flows(r->backend) &&
	    (opens_anew || !(r->service->flags & SERVICE_KEEP_DOWN)))
		return false;
	p->frontend = r->frontend->id;
	p->service = r->service->id;
	p->backend = r->backend->id;
	return true;
}

/* ---- the gate ---- */

/* One more in this tick? Shared by the CPUs; index 0, no service's, limits ICMP errors. */
static __always_inline bool gate_open(__u32 id, __u32 limit, __u32 now)
{
	__u32 index = id & ID_INDEX_MASK;
	struct service_state *state;
	__u64 seen;

	if (!limit)
		return true;
	state = bpf_map_lookup_elem(&service_state, &index);
	if (!state)
		return true;
	seen = state->gate;
	if ((__s32)(now - (__u32)(seen >> 32)) > 0 && /* another CPU may be ahead */
	    __sync_val_compare_and_swap(&state->gate, seen, (__u64)now << 32 | 1) == seen)
		return true;
	if ((__u32)state->gate >= limit)
		return false;
	return (__u32)__sync_fetch_and_add(&state->gate, 1) < limit;
}

/* ---- entries for replies ---- */

/* The backend's port: a frontend for any port never rewrites, nor does a backend without one. */
static __always_inline __be16 backend_port(const struct backend *b, const struct frontend *f,
					   __be16 port)
{
	return b->port && f->port ? b->port : port;
}

/* The tuple that replies of this packet's flow will carry. */
static __always_inline bool reply_tuple(const struct packet *p, struct flow6_key *reply)
{
	struct frontend *frontend = frontend_of(p->frontend);
	struct service *service = service_of(p->service);
	struct backend *backend = backend_of(p->backend);

	if (!frontend || !service || !backend)
		return false;
	__builtin_memset(reply, 0, sizeof(*reply));
	reply->saddr = backend->addr;
	reply->daddr = p->tuple.saddr;
	reply->proto = p->tuple.proto;
	if (!p->fragment) {
		reply->sport = backend_port(backend, frontend, p->tuple.dport);
		reply->dport = p->tuple.sport;
	}
	if (service->forward == FORWARD_FULLNAT) {
		reply->daddr = p->family == 4 ? settings.nat_source4 : settings.nat_source6;
		reply->dport = p->source_port;
	}
	return true;
}

static __always_inline bool same_address(const union address *a, const union address *b)
{
	return a->half[0] == b->half[0] && a->half[1] == b->half[1];
}

static __always_inline bool same_tuple(const struct flow6_key *a, const struct flow6_key *b)
{
	return same_address(&a->saddr, &b->saddr) && same_address(&a->daddr, &b->daddr) &&
	       a->sport == b->sport && a->dport == b->dport && a->proto == b->proto;
}

/* Another client's entry, but of a flow that is over or whose ids mean nothing any more. */
static __always_inline bool is_spent(const struct packet *p, const struct flow *flow)
{

	if (!frontend_of(flow->frontend) || !backend_of(flow->backend))
		return true;
	return flow->state & FLOW_CLOSED && is_idle(flow, p->now, settings.rest);
}

enum claim {
	CLAIM_FLOW = 0,		/* for an established flow: in `returns` */
	CLAIM_OPENING = 1,	/* for a SYN: in `opening` */
	CLAIM_ASSERT = 2,	/* the entry should be there: leave it if it is */
};

/* Makes the reply entry of this packet's flow, in one of two maps, and sees
 * that the other has none: a reply looks into both.
 */
__attribute__((noinline)) int claim_return(__u32 claim)
{
	struct packet *p = this_packet();
	struct flow flow = {};
	struct flow *entry;
	long failed;

	if (!p || !reply_tuple(p, &p->reply))
		return VERDICT_NO_ROOM;
	flow.backend = p->backend;
	flow.frontend = p->frontend;
	flow.seen = p->now;

	entry = find_return(p->family, &p->reply, &p->theirs);
	if (entry) {
		bool ours = same_tuple(&p->theirs, &p->tuple);

		if (!ours && !is_spent(p, entry))
			return VERDICT_RETURN_TAKEN;
		if (ours && claim == CLAIM_ASSERT) {
			entry->seen = p->now;
			return GO_ON;
		}
		drop_return(p->family, &p->reply);
	}
	entry = find_opening(p->family, &p->reply, SIDE_BACKEND, &p->theirs);
	if (entry) {
		if (!same_tuple(&p->theirs, &p->tuple) && !is_spent(p, entry))
			return VERDICT_RETURN_TAKEN;
		drop_opening(p->family, &p->reply, SIDE_BACKEND);
	}
	if (claim == CLAIM_OPENING)
		failed = put_opening(p->family, &p->reply, &p->tuple, &flow);
	else
		failed = put_return(p->family, &p->reply, &p->tuple, &flow);
	if (!failed)
		return GO_ON;
	return failed == -17 /* EEXIST: another CPU was faster */ ? VERDICT_RETURN_TAKEN : VERDICT_NO_ROOM;
}

/* fullnat: a source port that no other flow's replies come to, into p->source_port. */
static __always_inline int claim_port(struct packet *p, __u32 claim)
{
	__u32 range, offset;
	int verdict;

	if (settings.port_high < settings.port_low)
		return VERDICT_PORTS_TAKEN;
	range = settings.port_high - settings.port_low + 1;
	offset = (__u32)tuple_hash(&p->tuple, p->family, HASH_FIVE_TUPLE) % range;
	/* As a loop, clang closes it without a jump, which kernels before 6.8 refuse. */
#pragma unroll
	for (int i = 0; i < PORT_TRIES; i++) {
		p->source_port = bpf_htons(settings.port_low + offset);
		verdict = claim_return(claim);
		if (verdict != VERDICT_RETURN_TAKEN)
			return verdict;
		offset = offset + 1 < range ? offset + 1 : 0;
	}
	return VERDICT_PORTS_TAKEN;
}
