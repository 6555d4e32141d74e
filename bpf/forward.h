/* SPDX-License-Identifier: GPL-2.0-only */
/* Changing a packet and naming the interface that it leaves by. Whoever calls
 * has decided where it goes; nothing here decides, beyond "it does not fit".
 */
#pragma once

#include "csum.h"
#include "flow.h"
#include "outer.h"
#include "parse.h"
#include "select.h"

#define MAX_OVERHEAD 48

/* Twelve bytes that lie together in a backend, in a hop (both aligned to four) and in a frame. */
static __always_inline void put_macs(void *eth, const void *macs)
{
	__u32 *to = eth;
	const __u32 *from = macs;

	for (int i = 0; i < 3; i++)
		to[i] = from[i];
}

static __always_inline __u32 overhead(const struct service *s, const struct backend *b)
{
	__u32 ip = b->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	if (s->forward == FORWARD_IPIP)
		return ip;
	return s->forward == FORWARD_GUE ? ip + sizeof(struct udphdr) : 0;
}

static __always_inline __u8 ttl_of(struct xdp_md *ctx, const struct packet *p)
{
	void *data = frame_start(ctx);
	struct ipv6hdr *six = data + (p->l3 & L3_MASK);
	struct iphdr *four = data + (p->l3 & L3_MASK);

	if (p->family == 4)
		return (void *)(four + 1) > frame_end(ctx) ? 0 : four->ttl;
	return (void *)(six + 1) > frame_end(ctx) ? 0 : six->hop_limit;
}

static __always_inline bool is_set(const union address *a)
{
	return a->half[0] | a->half[1];
}

static __always_inline bool families_fit(const struct packet *p, const struct service *s,
					 const struct backend *b)
{
	switch (s->forward) {
	case FORWARD_NAT:
		return b->family == p->family;
	case FORWARD_FULLNAT:
		return b->family == p->family &&
		       is_set(p->family == 4 ? &settings.nat_source4 : &settings.nat_source6);
	case FORWARD_IPIP:
	case FORWARD_GUE:
		return is_set(b->family == 4 ? &settings.tunnel_source4 : &settings.tunnel_source6);
	default:
		return s->forward == FORWARD_DSR;
	}
}

/* Asked before anything is remembered: a flow is learnt for a packet that can be sent. */
static __always_inline int sendable(struct xdp_md *ctx, struct packet *p, const struct service *s,
				    const struct backend *b)
{
	__u32 extra;

	if (!families_fit(p, s, b))
		return VERDICT_MISCONFIGURED;
	if (!b->ifindex)
		return VERDICT_NO_NEXT_HOP;
	if (s->forward != FORWARD_DSR && ttl_of(ctx, p) <= 1)
		return VERDICT_TTL_EXPIRED;
	extra = overhead(s, b);
	if (p->length + extra > b->mtu) {
		p->fits = b->mtu > extra ? b->mtu - extra : 0;
		return VERDICT_TOO_BIG;
	}
	return GO_ON;
}

/* One hop less. The caller has seen that more than one is left. */
static __always_inline void age(struct xdp_md *ctx, const struct packet *p)
{
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	struct ipv6hdr *six = data + (p->l3 & L3_MASK);
	struct iphdr *four = data + (p->l3 & L3_MASK);

	if (p->family == 4) {
		if ((void *)(four + 1) > end)
			return;
		csum_age(&four->check);
		four->ttl--;
	} else if ((void *)(six + 1) <= end) {
		six->hop_limit--;
	}
}

/* Writes the addresses of `to` over the packet's; returns what that does to a
 * checksum which covers them, ports not included.
 */
static __always_inline __u64 readdress(void *header, void *end, __u8 family,
				       const struct flow6_key *from, const struct flow6_key *to)
{
	struct ipv6hdr *six = header;
	struct iphdr *four = header;
	__u64 delta;

	if (family == 6) {
		if ((void *)(six + 1) > end)
			return 0;
		__builtin_memcpy(&six->saddr, &to->saddr, 32);
		return delta_address(&from->saddr, &to->saddr) +
		       delta_address(&from->daddr, &to->daddr);
	}
	if ((void *)(four + 1) > end)
		return 0;
	four->saddr = to->saddr.v4;
	four->daddr = to->daddr.v4;
	delta = delta32(from->saddr.v4, to->saddr.v4) + delta32(from->daddr.v4, to->daddr.v4);
	csum_update(&four->check, delta);
	return delta;
}

/* The packet's tuple becomes `to`: addresses, ports where there are any, checksums. */
static __always_inline void translate(struct xdp_md *ctx, const struct packet *p,
				      const struct flow6_key *to)
{
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	void *l4 = data + (p->l4 & OFFSET_MASK);
	__u64 delta = readdress(data + (p->l3 & L3_MASK), end, p->family, &p->tuple, to);
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;

	if (p->fragment == FRAGMENT_LATER || (void *)(udp + 1) > end)
		return;
	if (!p->fragment) {
		delta += delta16(p->tuple.sport, to->sport) + delta16(p->tuple.dport, to->dport);
		udp->source = to->sport;
		udp->dest = to->dport;
	}
	if (p->tuple.proto == IPPROTO_UDP) {
		if (udp->check)
			csum_update_udp(&udp->check, delta);
	} else if ((void *)(tcp + 1) <= end) {
		csum_update(&tcp->check, delta);
	}
}

/* Where a packet of this flow goes when it is translated towards the backend. */
static __always_inline void backend_tuple(const struct packet *p, const struct service *s,
					  const struct backend *b, const struct frontend *f, struct flow6_key *to)
{
	*to = p->tuple;
	to->daddr = b->addr;
	to->dport = backend_port(b, f, p->tuple.dport);
	if (s->forward == FORWARD_FULLNAT) {
		to->saddr = p->family == 4 ? settings.nat_source4 : settings.nat_source6;
		to->sport = p->source_port;
	}
}

/* ---- encapsulation ---- */

/* Sum of `length` bytes of the frame from `offset`, read one by one in pairs:
 * only for the few packets whose own checksum says nothing about all of them.
 */
__attribute__((noinline)) __u64 sum_bytes(struct xdp_md *ctx, __u32 offset, __u32 length)
{
	__u8 chunk[32];
	__u64 sum = 0;
	__u32 at;

	for (at = 0; at + 32 <= length && at < 0x10000; at += 32) {
		if (bpf_xdp_load_bytes(ctx, offset + at, chunk, 32))
			return 0;
		for (int i = 0; i < 8; i++)
			sum += *(__u32 *)(chunk + i * 4);
	}
	for (int i = 0; i < 16 && at + 2 <= length; i++, at += 2) {
		if (bpf_xdp_load_bytes(ctx, offset + at, chunk, 2))
			return 0;
		sum += *(__u16 *)chunk;
	}
	if (at < length && !bpf_xdp_load_bytes(ctx, offset + at, chunk, 1))
		sum += chunk[0];
	return sum;
}

/* Sum of the whole inner packet. Its header is added up; of what follows, its own
 * checksum says that with the pseudo header it comes to nothing, so the pseudo header,
 * negated, stands for it.
 */
static __always_inline __u64 sum_inner(struct xdp_md *ctx, const struct packet *p, __u32 l3)
{
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	struct udphdr *udp = data + ((l3 + p->l4 - p->l3) & OFFSET_MASK);
	__u32 header = p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u32 *words = data + (l3 & 127);
	__u64 sum = 0, pseudo;

	if (!p->plain || p->fragment)
		return sum_bytes(ctx, l3, p->length);
	if (p->tuple.proto == IPPROTO_UDP &&
	    ((void *)(udp + 1) > end || !udp->check ||
	     udp->len != bpf_htons(p->length - header)))
		return sum_bytes(ctx, l3, p->length);
	if ((void *)(words + 5) > end)
		return 0;
	for (int i = 0; i < 5; i++)
		sum += words[i];
	if (p->family == 6) {
		if ((void *)(words + 10) > end)
			return 0;
		for (int i = 5; i < 10; i++)
			sum += words[i];
	}
	if (p->family == 4 && p->tuple.proto == IPPROTO_ICMP)
		return sum;
	pseudo = (__u64)bpf_htons(p->length - header) + ((__u16)p->tuple.proto << 8) +
		 sum_address((union address *)&p->tuple.saddr) +
		 sum_address((union address *)&p->tuple.daddr);
	return sum + (__u16)~fold(pseudo);
}

/* Outer headers in front of the packet; the tags stay in front of those. */
static __always_inline int encapsulate(struct xdp_md *ctx, const struct packet *p,
				       const struct service *s, const struct backend *b, __u64 hash)
{
	__u32 extra = overhead(s, b), length = p->length + extra;
	__u8 inner = p->family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	bool gue = s->forward == FORWARD_GUE;
	__u8 proto = gue ? IPPROTO_UDP : inner;
	struct outer_udp *udp;
	void *data, *end, *l3;
	__be16 *type;
	__u8 class;

	if (bpf_xdp_adjust_head(ctx, -(int)extra))
		return VERDICT_NO_HEADROOM;
	data = frame_start(ctx);
	end = frame_end(ctx);
	l3 = data + (p->l3 & L3_MASK);
	if (p->l3 > sizeof(struct ethhdr)) {
		/* the tags move to the front, two bytes at a time */
		for (int i = sizeof(struct ethhdr) - 2; i < p->l3 - 2 && i < 20; i += 2) {
			__u16 *from = data + extra + i, *to = data + i;

			if ((void *)(from + 1) > end || (void *)(to + 1) > end)
				return VERDICT_NO_HEADROOM;
			*to = *from;
		}
	}
	type = data + ((p->l3 - sizeof(*type)) & L3_MASK);
	if ((void *)(type + 1) > end || l3 + extra + 2 > end)
		return VERDICT_NO_HEADROOM;
	*type = b->family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	class = class_of(l3 + extra, p->family);
	if (l3 + (b->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) > end)
		return VERDICT_NO_HEADROOM;
	if (b->family == 4) {
		outer_ipv4(l3, class, length, proto, &settings.tunnel_source4, &b->addr);
		udp = l3 + sizeof(struct iphdr);
	} else {
		outer_ipv6(l3, class, length, proto, &settings.tunnel_source6, &b->addr);
		udp = l3 + sizeof(struct ipv6hdr);
	}
	if (!gue)
		return GO_ON;
	if ((void *)(udp + 1) > end)
		return VERDICT_NO_HEADROOM;
	udp->source = gue_source(hash);
	udp->dest = settings.gue_port;
	udp->length = bpf_htons(p->length + sizeof(*udp));
	udp->csum = 0;
	if (b->family == 6) {
		__u64 sum = (__u64)udp->source + udp->dest + udp->length + udp->length +
			    bpf_htons(IPPROTO_UDP) + sum_address(&settings.tunnel_source6) +
			    sum_address(&b->addr);
		__u16 csum;

		sum += fold(sum_inner(ctx, p, p->l3 + extra));
		csum = ~fold(sum);
		data = frame_start(ctx);
		udp = data + (p->l3 & L3_MASK) + sizeof(struct ipv6hdr);
		if ((void *)(udp + 1) > frame_end(ctx))
			return VERDICT_NO_HEADROOM;
		udp->csum = csum ?: 0xffff;
	}
	return GO_ON;
}

/* The packet of a flow, to its backend. */
static __noinline int deliver(struct xdp_md *ctx, struct packet *p, const struct service *s,
				   const struct backend *b)
{
	struct frontend *frontend;
	void *data;
	int verdict;

	p->egress = b->ifindex;
	if (s->forward == FORWARD_IPIP || s->forward == FORWARD_GUE) {
		__u64 hash = 0;

		if (s->forward == FORWARD_GUE)
			hash = tuple_hash(&p->tuple, p->family, HASH_FIVE_TUPLE);
		age(ctx, p);
		verdict = encapsulate(ctx, p, s, b, hash);
		if (verdict != GO_ON)
			return verdict;
	} else if (s->forward != FORWARD_DSR) {
		frontend = frontend_of(p->frontend);
		if (!frontend)
			return VERDICT_MISCONFIGURED;
		backend_tuple(p, s, b, frontend, &p->to);
		translate(ctx, p, &p->to);
		age(ctx, p);
	}
	data = frame_start(ctx);
	if (data + sizeof(struct ethhdr) > frame_end(ctx))
		return VERDICT_NO_HEADROOM;
	put_macs(data, b->dmac);
	return VERDICT_FORWARDED;
}
