/* SPDX-License-Identifier: GPL-2.0-only */
/* From a backend of nat or fullnat: back to the client, as if from the service. */
#pragma once

#include <linux/bpf.h>

#include "flow.h"
#include "forward.h"
#include "parse.h"
#include "select.h"

#define AF_INET 2
#define AF_INET6 10

static __always_inline struct hop *hop_of(__u32 number)
{
	return bpf_map_lookup_elem(&hops, &number);
}

/* The number of a hop. Numbers are dealt from hops[0].ifindex and never taken back; 0: none left. */
static __always_inline __u32 number_of(const struct hop *hop)
{
	__u32 *known = bpf_map_lookup_elem(&hop_ids, hop);
	struct hop *dealer = hop_of(0);
	__u32 number;

	if (known)
		return *known;
	if (!dealer || dealer->ifindex >= 0xffff || !hop_of(dealer->ifindex + 1))
		return 0;
	number = __sync_fetch_and_add(&dealer->ifindex, 1) + 1;
	if (number > 0xffff || bpf_map_update_elem(&hops, &number, hop, BPF_ANY))
		return 0;
	if (bpf_map_update_elem(&hop_ids, hop, &number, BPF_NOEXIST)) {
		known = bpf_map_lookup_elem(&hop_ids, hop);
		return known ? *known : 0;
	}
	return number;
}

enum road {
	ROAD_OPEN,		/* *hop says where */
	ROAD_NO_NEIGHBOUR,
	ROAD_LOCAL,		/* the destination is this node's own, or not routed at all */
	ROAD_CLOSED,
};

/* Asks the kernel's routes for the way from `t`'s source to its destination. */
__attribute__((noinline)) int find_road(struct xdp_md *ctx, struct packet *p, struct flow6_key *t,
					struct hop *hop)
{
	struct bpf_fib_lookup fib = {};
	struct hop found = {};
	int rc;

	if (!p || !t || !hop)
		return ROAD_CLOSED;
	fib.ifindex = ctx->ingress_ifindex;
	fib.l4_protocol = t->proto;
	if (p->family == 4) {
		fib.family = AF_INET;
		fib.ipv4_src = t->saddr.v4;
		fib.ipv4_dst = t->daddr.v4;
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &t->saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &t->daddr, 16);
	}
	rc = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH)
		return ROAD_NO_NEIGHBOUR;
	if (rc == BPF_FIB_LKUP_RET_NOT_FWDED)
		return ROAD_LOCAL;
	if (rc)
		return ROAD_CLOSED;
	found.ifindex = fib.ifindex;
	found.mtu = fib.mtu_result;
	__builtin_memcpy(found.dmac, fib.dmac, 6);
	__builtin_memcpy(found.smac, fib.smac, 6);
	p->hop = number_of(&found); /* not `hop`: it would be a key, see this_packet() */
	*hop = found;
	return ROAD_OPEN;
}

/* The next hop that the entry remembers, else the one that routes say now. */
static __always_inline int road_to_client(struct xdp_md *ctx, struct packet *p,
					  struct flow6_key *to, const struct flow *entry, struct hop *hop)
{
	struct hop *kept;

	p->hop = 0;
	if (entry && entry->hop && entry->hop_epoch == (__u8)settings.hop_epoch) {
		kept = hop_of(entry->hop);
		if (kept) {
			*hop = *kept;
			p->hop = entry->hop;
			return ROAD_OPEN;
		}
	}
	return find_road(ctx, p, to, hop);
}

/* Frontends that have this backend at this port. */
static __noinline struct reply *candidates(const struct packet *p, __be16 port)
{
	struct frontend4_key four = {};
	struct frontend6_key six = {};

	if (p->family == 4) {
		four.addr = p->tuple.saddr.v4;
		four.port = port;
		four.proto = p->tuple.proto;
		return bpf_map_lookup_elem(&replies4, &four);
	}
	__builtin_memcpy(six.addr, &p->tuple.saddr, 16);
	six.port = port;
	six.proto = p->tuple.proto;
	return bpf_map_lookup_elem(&replies6, &six);
}

/* p->tuple is a reply's. If the table leads one client tuple, and only one, to this
 * backend, that is whom it answers: p's ids and p->client say so.
 */
__attribute__((noinline)) int derive(struct packet *p)
{
	struct flow6_key *reply;
	__u32 found = 0, backend = 0;
	struct frontend *f;
	struct service *s;
	struct reply *list = NULL;

	if (!p)
		return VERDICT_NOT_OURS;
	if (!p->fragment)
		list = candidates(p, p->tuple.sport);
	if (!list)
		list = candidates(p, 0);
	reply = &p->to;
	*reply = p->tuple;
	if (!list || list->count > REPLY_CANDIDATES)
		return VERDICT_NOT_OURS;
	for (__u32 i = 0; i < REPLY_CANDIDATES; i++) {
		if (i >= list->count)
			break;
		f = frontend_of(list->candidate[i].frontend);
		s = f ? service_of(f->service) : NULL;
		if (!f || !s || s->forward != FORWARD_NAT || s->flags & SERVICE_DIRECT)
			continue;
		reversed(&p->tuple, reply);
		p->tuple.daddr = f->addr;
		if (!p->fragment)
			p->tuple.dport = f->port ?: reply->sport;
		draw_hash(p, s);
		p->service = s->id;
		if (choose(p, 0) != list->candidate[i].backend)
			continue;
		found++;
		p->frontend = f->id;
		backend = list->candidate[i].backend;
		p->client = p->tuple;
	}
	p->tuple = *reply;
	if (found != 1)
		return VERDICT_NOT_OURS;
	f = frontend_of(p->frontend);
	if (!f)
		return VERDICT_NOT_OURS;
	p->service = f->service;
	p->backend = backend;
	return GO_ON;
}

/* A derived reply tells that a flow exists: remember it, unless that could harm another. */
__attribute__((noinline)) int learn_derived(void)
{
	struct packet *p = this_packet();
	struct service *s = p ? service_of(p->service) : NULL;
	struct flow flow = {};

	if (!p || !s || !keeps_flows(s) || p->what == WHAT_SYN || p->ending)
		return 0;
	if (find_flow(p->family, &p->client) ||
	    find_opening(p->family, &p->client, SIDE_CLIENT, NULL))
		return 0;
	if (!gate_open(s->id, s->gate, p->now))
		return 0;
	p->to = p->tuple;
	p->tuple = p->client;
	if (claim_return(CLAIM_FLOW) == GO_ON) {
		flow.backend = p->backend;
		flow.frontend = p->frontend;
		flow.seen = p->now;
		if (!put_flow(p->family, &p->client, &flow))
			count_new_flow(p);
	}
	p->tuple = p->to;
	reversed(&p->to, &p->client);
	return 0;
}

/* FIN and RST from the backend, on the entry and on the client's flow. */
static __always_inline void note_reply(struct packet *p, struct flow *entry, struct flow *forth,
				       const struct service *s)
{
	__u8 ending = (p->ending & FLOW_RESET) |
		      (p->ending & FLOW_CLIENT_FIN ? FLOW_BACKEND_FIN : 0);

	entry->seen = p->now;
	if (forth)
		forth->seen = p->now;
	if (!ending)
		return;
	if (forth) {
		forth->state |= ending;
		if (is_over(forth->state, s))
			end_flow(forth);
		ending |= forth->state;
	}
	entry->state |= ending;
	if (is_over(entry->state, s))
		entry->state |= FLOW_CLOSED;
}

/* Keeps what the packet teaches: freshness, endings, the next hop. */
static __noinline void mark_reply(struct packet *p, struct flow *entry)
{
	struct service *s = service_of(p->service);
	struct flow *forth;

	if (entry->hop != p->hop || entry->hop_epoch != (__u8)settings.hop_epoch) {
		entry->hop = p->hop;
		entry->hop_epoch = settings.hop_epoch;
	}
	if (!s || (entry->seen == p->now && !p->ending))
		return;
	forth = find_flow(p->family, &p->client);
	if (!forth)
		forth = find_opening(p->family, &p->client, SIDE_CLIENT, NULL);
	if (forth && forth->backend != entry->backend)
		forth = NULL; /* the client has come again since, and was sent elsewhere */
	note_reply(p, entry, forth, s);
}

static __always_inline bool to_nat_source(const struct packet *p)
{
	const union address *source = p->family == 4 ? &settings.nat_source4 : &settings.nat_source6;
	__u16 port = bpf_ntohs(p->tuple.dport);

	return p->kinds & ADDRESS_NAT_SOURCE && !p->fragment && is_set(source) &&
	       same_address(&p->tuple.daddr, source) && port >= settings.port_low &&
	       port <= settings.port_high;
}

/* An entry of the right mode whose frontend is still there. Sets p's ids. */
static __always_inline bool entry_stands(struct packet *p, const struct flow *entry, __u8 mode)
{
	struct frontend *frontend = entry ? frontend_of(entry->frontend) : NULL;
	struct service *s = frontend ? service_of(frontend->service) : NULL;

	if (!s || s->forward != mode)
		return false;
	p->frontend = frontend->id;
	p->service = s->id;
	p->backend = entry->backend;
	return true;
}

static __always_inline struct flow *standing_entry(struct packet *p, const struct flow6_key *t,
						   __u8 mode, struct flow6_key *client)
{
	struct flow *entry = find_return(p->family, t, client);

	if (entry_stands(p, entry, mode))
		return entry;
	entry = find_opening(p->family, t, SIDE_BACKEND, client);
	return entry_stands(p, entry, mode) ? entry : NULL;
}

/* What learn_derived has made, if it did: not an entry of another client at the same key. */
static __noinline struct flow *own_entry(struct packet *p)
{
	struct flow *entry = find_return(p->family, &p->tuple, &p->theirs);

	return entry && same_tuple(&p->theirs, &p->client) ? entry : NULL;
}

/* Sends what has been translated, or hands it to the kernel where that must find the neighbour. */
static __always_inline int send_to_client(struct xdp_md *ctx, struct packet *p, int road,
					  const struct hop *hop, int sent)
{
	void *data;

	if (road == ROAD_OPEN) {
		age(ctx, p);
		data = frame_start(ctx);
		if (data + sizeof(struct ethhdr) > frame_end(ctx))
			return VERDICT_NO_ROUTE;
		put_macs(data, hop->dmac);
		p->egress = hop->ifindex;
	}
	count_reply(p->service, p->backend, p->bytes);
	return road == ROAD_OPEN ? sent : VERDICT_RETURN_PASSED;
}

/* May it take this road? GO_ON, or why not. */
static __always_inline int passable(struct xdp_md *ctx, struct packet *p, int road,
				    const struct hop *hop)
{
	if (road == ROAD_NO_NEIGHBOUR)
		return GO_ON;
	if (road != ROAD_OPEN)
		return VERDICT_NO_ROUTE;
	if (ttl_of(ctx, p) <= 1)
		return VERDICT_TTL_EXPIRED;
	if (hop->mtu && p->length > hop->mtu) {
		p->fits = hop->mtu;
		return VERDICT_TOO_BIG;
	}
	return GO_ON;
}

/* NOT_OURS: nobody's reply. */
static __noinline int give_back(struct xdp_md *ctx, struct packet *p)
{
	bool full = to_nat_source(p), derived = false;
	struct hop hop = {};
	struct flow *entry;
	int road, verdict;

	if (!full && !(p->kinds & ADDRESS_NAT_BACKEND))
		return VERDICT_NOT_OURS;
	p->now = bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
	entry = standing_entry(p, &p->tuple, full ? FORWARD_FULLNAT : FORWARD_NAT, &p->client);
	if (!entry) {
		if (full)
			return VERDICT_UNKNOWN_PORT;
		if (derive(p) != GO_ON)
			return VERDICT_NOT_OURS;
		derived = true;
	}
	reversed(&p->to, &p->client);
	road = road_to_client(ctx, p, &p->to, entry, &hop);
	if (derived && road == ROAD_LOCAL)
		return VERDICT_NOT_OURS;
	verdict = passable(ctx, p, road, &hop);
	if (verdict != GO_ON)
		return verdict;
	if (derived) {
		learn_derived();
		entry = own_entry(p);
	}
	if (entry)
		mark_reply(p, entry);
	translate(ctx, p, &p->to);
	return send_to_client(ctx, p, road, &hop, VERDICT_RETURNED);
}
