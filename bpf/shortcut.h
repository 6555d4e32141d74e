/* SPDX-License-Identifier: GPL-2.0-only */
/* The way of nearly every packet: those that concern nobody, and IPv4 without tags,
 * options or fragments, of a flow that is known (for nat: seen in this very tick,
 * so that its entry for replies needs no care), or for a service that learns nothing.
 *
 * Nothing is decided here that the long way would decide otherwise: whatever is
 * unusual is refused before a byte has changed, and the long way starts anew.
 * A test sends packets both ways and compares; the model knows only the long one.
 */
#pragma once

#include "count.h"
#include "csum.h"
#include "flow.h"
#include "forward.h"
#include "parse.h"
#include "reply.h"
#include "select.h"

#define LONG_WAY GO_ON

#define TCP_OFFSET 12		/* where the bytes are that hold these */
#define TCP_FLAGS 13
#define TCP_ENDING 0x05		/* FIN, RST */
#define TCP_SYN 0x02
#define TCP_ACK 0x10
#define RECENT 256

/* A frame of the kind: its headers are where they nearly always are. */
#define SHORT_FRAME (sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct tcphdr))

static __always_inline __be16 *ethertype(void *frame)
{
	return frame + __builtin_offsetof(struct ethhdr, h_proto);
}

static __always_inline struct iphdr *ip_of(void *frame)
{
	return frame + sizeof(struct ethhdr);
}

static __always_inline struct tcphdr *tcp_of(void *frame)
{
	return frame + sizeof(struct ethhdr) + sizeof(struct iphdr);
}

static __always_inline struct udphdr *udp_of(void *frame)
{
	return frame + sizeof(struct ethhdr) + sizeof(struct iphdr);
}

/* What is known of the packet by the time it can be sent. */
struct lane {
	void *frame;
	struct frontend *frontend;
	struct service *service;
	struct backend *backend;
	struct flow *stale;	/* to be marked as seen when the packet goes out */
	__u32 bytes;
	__u32 egress;
	__u16 length;
	__u8 proto;
};

/* TCP or UDP with plain headers that hold together. */
static __always_inline bool is_short(const struct lane *lane)
{
	__u32 segment = lane->length - sizeof(struct iphdr);
	struct udphdr *udp = udp_of(lane->frame);
	__u8 *tcp = lane->frame + SHORT_FRAME - sizeof(struct tcphdr);

	if (ip_of(lane->frame)->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))
		return false;
	if (sizeof(struct ethhdr) + lane->length > lane->bytes)
		return false;
	if (lane->proto == IPPROTO_TCP)
		return lane->length >= sizeof(struct iphdr) + sizeof(struct tcphdr) &&
		       tcp[TCP_OFFSET] >= 5 << 4 &&
		       (tcp[TCP_OFFSET] >> 4) * 4U <= segment;
	return lane->proto == IPPROTO_UDP && lane->length >= sizeof(struct iphdr) + sizeof(*udp) &&
	       bpf_ntohs(udp->len) >= sizeof(*udp) && bpf_ntohs(udp->len) <= segment;
}

static __always_inline bool fits_lane(const struct lane *lane, __u32 extra)
{
	const struct backend *b = lane->backend;

	return b->family == 4 && b->ifindex && lane->length + extra <= b->mtu;
}

/* In place: the flow's addresses, ports and checksums, one hop less. */
static __always_inline void short_translate(const struct lane *lane, __be32 saddr, __be32 daddr,
					    __be16 sport, __be16 dport)
{
	struct iphdr *ip = ip_of(lane->frame);
	struct tcphdr *tcp = tcp_of(lane->frame);
	struct udphdr *udp = udp_of(lane->frame);
	__u64 addresses = delta32(ip->saddr, saddr) + delta32(ip->daddr, daddr);
	__u64 delta = addresses + delta16(udp->source, sport) + delta16(udp->dest, dport);

	ip->saddr = saddr;
	ip->daddr = daddr;
	udp->source = sport;
	udp->dest = dport;
	csum_update(&ip->check, addresses + delta16(1, 0));
	ip->ttl--;
	if (lane->proto == IPPROTO_TCP)
		csum_update(&tcp->check, delta);
	else if (udp->check)
		csum_update_udp(&udp->check, delta);
}

/* In front: IPv4 in IPv4, or that in UDP. */
static __always_inline int short_encapsulate(struct xdp_md *ctx, struct lane *lane, __u64 hash)
{
	bool gue = lane->service->forward == FORWARD_GUE;
	__u32 extra = sizeof(struct iphdr) + (gue ? sizeof(struct udphdr) : 0);
	struct iphdr *ip = ip_of(lane->frame);
	__u8 class = ip->tos;
	struct udphdr *udp;
	void *frame;

	csum_age(&ip->check);
	ip->ttl--;
	if (bpf_xdp_adjust_head(ctx, -(int)extra))
		return VERDICT_NO_HEADROOM;
	frame = frame_start(ctx);
	if (frame + SHORT_FRAME > frame_end(ctx))
		return VERDICT_NO_HEADROOM;
	lane->frame = frame;
	*ethertype(frame) = bpf_htons(ETH_P_IP);
	outer_ipv4(ip_of(frame), class, lane->length + extra, gue ? IPPROTO_UDP : IPPROTO_IPIP,
		   &settings.tunnel_source4, &lane->backend->addr);
	if (gue) {
		udp = udp_of(frame);
		udp->source = gue_source(hash);
		udp->dest = settings.gue_port;
		udp->len = bpf_htons(lane->length + sizeof(*udp));
		udp->check = 0;
	}
	return GO_ON;
}

static __always_inline __u64 short_hash(const struct lane *lane, __u8 fields)
{
	struct flow6_key t = {
		.saddr.v4 = ip_of(lane->frame)->saddr,
		.daddr.v4 = ip_of(lane->frame)->daddr,
		.sport = udp_of(lane->frame)->source,
		.dport = udp_of(lane->frame)->dest,
		.proto = lane->proto,
	};

	return tuple_hash(&t, 4, fields);
}

static __always_inline int short_deliver(struct xdp_md *ctx, struct lane *lane)
{
	struct iphdr *ip = ip_of(lane->frame);
	struct udphdr *udp = udp_of(lane->frame);
	struct backend *b = lane->backend;
	__u8 mode = lane->service->forward;
	__u64 hash = 0;
	int verdict;

	if (mode != FORWARD_DSR && ip->ttl <= 1)
		return LONG_WAY;
	switch (mode) {
	case FORWARD_NAT:
		if (!fits_lane(lane, 0))
			return LONG_WAY;
		short_translate(lane, ip->saddr, b->addr.v4, udp->source,
				backend_port(b, lane->frontend, udp->dest));
		break;
	case FORWARD_DSR:
		if (!b->ifindex || lane->length > b->mtu)
			return LONG_WAY;
		break;
	case FORWARD_IPIP:
	case FORWARD_GUE:
		if (!settings.tunnel_source4.v4 || !fits_lane(lane, overhead(lane->service, b)))
			return LONG_WAY;
		if (mode == FORWARD_GUE)
			hash = short_hash(lane, HASH_FIVE_TUPLE);
		verdict = short_encapsulate(ctx, lane, hash);
		if (verdict != GO_ON)
			return verdict;
		break;
	default:
		return LONG_WAY;
	}
	put_macs(lane->frame, b->dmac);
	lane->egress = b->ifindex;
	return VERDICT_FORWARDED;
}

/* The frontend's service, both there. */
static __always_inline bool lane_service(struct lane *lane, __u32 frontend)
{
	lane->frontend = frontend_of(frontend);
	if (!lane->frontend)
		return false;
	lane->service = service_of(lane->frontend->service);
	return lane->service;
}

/* Not seen in this tick yet. A flow without a return entry needs only its time. */
static __always_inline bool short_refresh(struct lane *lane, struct flow *flow, __u32 now)
{
	const struct service *s = lane->service;

	if (s->forward == FORWARD_NAT || s->forward == FORWARD_FULLNAT)
		return false;
	lane->stale = flow;
	return !is_idle(flow, now, lane->proto == IPPROTO_TCP ? s->tcp_idle : s->udp_idle);
}

/* A flow that is open, by the table's present backend and service. */
static __always_inline bool short_flow(struct lane *lane, const struct flow4_key *key,
				       struct cpu *cpu)
{
	struct flow *flow = bpf_map_lookup_elem(&flows4, key);
	__u32 now;

	if (!flow || flow->state & FLOW_CLOSED)
		return false;
	lane->backend = backend_of(flow->backend);
	if (!lane->backend || !lane_service(lane, flow->frontend))
		return false;
	now = tick_of(cpu);
	if (flow->seen != now && !short_refresh(lane, flow, now))
		return false;
	return !down_for_flows(lane->backend);
}

/* Frontends that this CPU has met lately. Only a hint: a frontend's own entry says what it is for. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT);
	__type(key, __u32);
	__type(value, __u32);
} recent SEC(".maps");

static __always_inline bool is_for(const struct frontend *f, __be32 addr, __be16 port, __u8 proto)
{
	return f->addr.v4 == addr && f->port == port && f->proto == proto && f->family == 4 && port;
}

/* The exact frontend, and its service. */
static __always_inline bool short_frontend(struct lane *lane)
{
	__be32 addr = ip_of(lane->frame)->daddr;
	__be16 port = udp_of(lane->frame)->dest;
	__u32 place = (bucket4(addr) ^ port) & (RECENT - 1), *found;
	__u32 *hint = bpf_map_lookup_elem(&recent, &place);
	struct frontend4_key key;

	if (!hint)
		return false;
	if (lane_service(lane, *hint) && is_for(lane->frontend, addr, port, lane->proto))
		return true;
	frontend_words(&key, addr, port, lane->proto);
	found = bpf_map_lookup_elem(&frontends4, &key);
	if (!found || !lane_service(lane, *found))
		return false;
	*hint = *found;
	return true;
}

/* The slot that the hash says, if the service learns nothing from this packet and
 * the slot's backend can be used.
 */
static __always_inline bool short_choice(struct lane *lane, bool opening)
{
	struct pool *pool;
	__u32 index, slot, *id;
	void *table;

	if (!short_frontend(lane))
		return false;
	if (opening ? needs_entry(lane->service) : keeps_flows(lane->service))
		return false;
	if (lane->service->balance != BALANCE_HASH || lane->service->short_pools & 1)
		return false;
	pool = pool_of(lane->service->pools[0]);
	if (!pool || !lane->service->pool_count)
		return false;
	index = lane->service->pools[0] & ID_INDEX_MASK;
	table = bpf_map_lookup_elem(&tables, &index);
	if (!table)
		return false;
	slot = first_slot(pool, short_hash(lane, lane->service->hash), 0);
	id = bpf_map_lookup_elem(table, &slot);
	if (!id || !usable(*id, false, slot_hash(slot)))
		return false;
	lane->backend = backend_of(*id);
	return lane->backend;
}

/* A SYN that is known to no flow, for a service that learns nothing from it. */
static __always_inline bool short_opening(struct lane *lane, const struct flow4_key *key,
					  __u8 flags)
{
	return !(flags & TCP_ACK) && !bpf_map_lookup_elem(&flows4, key) &&
	       short_choice(lane, true);
}

/* The reply of a flow whose next hop is known, towards the client. */
static __always_inline int short_reply(struct lane *lane, const struct flow4_key *key,
				       struct cpu *cpu)
{
	struct return4 *entry = bpf_map_lookup_elem(&returns4, key);
	struct hop *hop;
	__u32 number;

	if (!entry || !entry->flow.hop || entry->flow.hop_epoch != (__u8)settings.hop_epoch)
		return LONG_WAY;
	if (entry->flow.seen != tick_of(cpu))
		return LONG_WAY;
	number = entry->flow.hop;
	hop = bpf_map_lookup_elem(&hops, &number);
	if (!hop || !lane_service(lane, entry->flow.frontend) ||
	    lane->service->forward != FORWARD_NAT)
		return LONG_WAY;
	if (ip_of(lane->frame)->ttl <= 1 || (hop->mtu && lane->length > hop->mtu))
		return LONG_WAY;
	short_translate(lane, entry->client.daddr, entry->client.saddr, entry->client.dport,
			entry->client.sport);
	put_macs(lane->frame, hop->dmac);
	lane->egress = hop->ifindex;
	count_reply(lane->service->id, entry->flow.backend, lane->bytes);
	return VERDICT_RETURNED;
}

/* IPv6 is only asked whether it is anybody's. */
static __always_inline int short_ipv6(void *frame)
{
	struct ipv6hdr *ip = frame + sizeof(struct ethhdr);

	if (ip->nexthdr == IPPROTO_ICMPV6 || kinds(bucket6((union address *)&ip->saddr),
						   bucket6((union address *)&ip->daddr)))
		return LONG_WAY;
	return VERDICT_NOT_OURS;
}

/* LONG_WAY, or what has become of the packet. */
static __always_inline int shortcut(struct xdp_md *ctx, struct lane *lane, struct cpu *cpu)
{
	void *frame = frame_start(ctx), *end = frame_end(ctx);
	struct iphdr *ip = ip_of(frame);
	struct flow4_key key;
	__u8 kind, flags = 0;
	int verdict;

	if (frame + SHORT_FRAME > end)
		return LONG_WAY;
	if (*ethertype(frame) != bpf_htons(ETH_P_IP))
		return *ethertype(frame) == bpf_htons(ETH_P_IPV6) ? short_ipv6(frame) : LONG_WAY;
	lane->stale = NULL;
	lane->frame = frame;
	lane->bytes = end - frame;
	lane->proto = ip->protocol;
	kind = kinds(bucket4(ip->saddr), bucket4(ip->daddr));
	if (!kind && lane->proto != IPPROTO_ICMP)
		return VERDICT_NOT_OURS;
	lane->length = bpf_ntohs(ip->tot_len);
	if (*(__u8 *)ip != 0x45 || !is_short(lane))
		return LONG_WAY;
	if (lane->proto == IPPROTO_TCP)
		flags = ((__u8 *)tcp_of(frame))[TCP_FLAGS];
	if (kind == (ADDRESS_SERVICE | ADDRESS_TABLE_FIRST)) {
		if (!short_choice(lane, false))
			return LONG_WAY;
	} else {
		if (flags & TCP_ENDING)
			return LONG_WAY;
		words4(&key, ip->saddr, ip->daddr, *(__u32 *)udp_of(frame), lane->proto, 0);
		if (kind == ADDRESS_NAT_BACKEND)
			return short_reply(lane, &key, cpu);
		if (kind != ADDRESS_SERVICE)
			return LONG_WAY;
		if (flags & TCP_SYN ? !short_opening(lane, &key, flags) :
				      !short_flow(lane, &key, cpu))
			return LONG_WAY;
	}
	verdict = short_deliver(ctx, lane);
	if (verdict != VERDICT_FORWARDED)
		return verdict;
	if (lane->stale)
		lane->stale->seen = cpu->tick;
	count_request(lane->service->id, lane->backend->id, lane->bytes);
	return verdict;
}
