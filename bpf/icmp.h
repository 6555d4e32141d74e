/* SPDX-License-Identifier: GPL-2.0-only */
/* ICMP: errors about flows go where the flow goes, echo requests are answered,
 * and senders of what does not fit are told what would. All of it is rare, so
 * nothing here is inlined into the path of other packets.
 */
#pragma once

#include "csum.h"
#include "flow.h"
#include "forward.h"
#include "parse.h"
#include "reply.h"
#include "select.h"

#define QUOTE4 528		/* 20 + 8 + 528 is within 576 */
#define QUOTE6 1232		/* 40 + 8 + 1232 is 1280 */
#define ICMP_TTL 64

static __always_inline void swap_macs(void *eth)
{
	__u16 *word = eth;

	for (int i = 0; i < 3; i++) {
		__u16 kept = word[i];

		word[i] = word[i + 3];
		word[i + 3] = kept;
	}
}

/* ---- echo ---- */

static __noinline int answer_echo(struct xdp_md *ctx, struct packet *p)
{
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	__u32 *mark = frontend_entry(p->family, &p->tuple.daddr, 0, p->tuple.proto);
	struct icmp *icmp = data + (p->l4 & OFFSET_MASK);
	struct ipv6hdr *six = data + (p->l3 & L3_MASK);
	struct iphdr *four = data + (p->l3 & L3_MASK);

	if (!mark || *mark != FRONTEND_ECHO || (void *)(icmp + 1) > end ||
	    data + sizeof(struct ethhdr) > end)
		return VERDICT_NOT_OURS;
	if (p->family == 4) {
		if ((void *)(four + 1) > end)
			return VERDICT_NOT_OURS;
		four->saddr = p->tuple.daddr.v4;
		four->daddr = p->tuple.saddr.v4;
		csum_update(&four->check, delta16(four->ttl, ICMP_TTL));
		four->ttl = ICMP_TTL;
		icmp->type = 0;
		csum_update(&icmp->csum, delta16(8, 0));
	} else {
		if ((void *)(six + 1) > end)
			return VERDICT_NOT_OURS;
		__builtin_memcpy(&six->saddr, &p->tuple.daddr, 16);
		__builtin_memcpy(&six->daddr, &p->tuple.saddr, 16);
		six->hop_limit = ICMP_TTL;
		icmp->type = 129;
		csum_update(&icmp->csum, delta16(128, 129));
	}
	swap_macs(data);
	p->egress = ctx->ingress_ifindex;
	return VERDICT_ECHO_ANSWERED;
}

/* ---- too big ---- */

static __always_inline bool may_tell(struct xdp_md *ctx, const struct packet *p, __u32 quote)
{
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	struct iphdr *four = data + (p->l3 & L3_MASK);

	if (p->length < quote || data + (p->l3 & L3_MASK) + quote > end)
		return false;
	return p->family == 6 || ((void *)(four + 1) <= end &&
				  four->frag_off & bpf_htons(IP_DONT_FRAGMENT));
}

static __always_inline void too_big4(struct iphdr *ip, const struct packet *p, __u64 quoted)
{
	struct icmp *icmp = (void *)(ip + 1);

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + QUOTE4);
	ip->id = 0;
	ip->frag_off = bpf_htons(IP_DONT_FRAGMENT);
	ip->ttl = ICMP_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = p->tuple.daddr.v4;
	ip->daddr = p->tuple.saddr.v4;
	ip->check = ~fold((__u64)0x45 + ip->tot_len + ip->frag_off +
			  (ICMP_TTL | IPPROTO_ICMP << 8) + ip->saddr + ip->daddr);
	icmp->type = 3;
	icmp->code = 4;
	icmp->rest = bpf_htonl(p->fits);
	icmp->csum = ~fold(quoted + (3 | 4 << 8) + icmp->rest);
}

static __always_inline void too_big6(struct ipv6hdr *ip, const struct packet *p, __u64 quoted)
{
	struct icmp *icmp = (void *)(ip + 1);
	__be16 length = bpf_htons(sizeof(*icmp) + QUOTE6);

	*(__u32 *)ip = bpf_htonl(6U << 28);
	ip->payload_len = length;
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = ICMP_TTL;
	__builtin_memcpy(&ip->saddr, &p->tuple.daddr, 16);
	__builtin_memcpy(&ip->daddr, &p->tuple.saddr, 16);
	icmp->type = 2;
	icmp->code = 0;
	icmp->rest = bpf_htonl(p->fits);
	icmp->csum = ~fold(quoted + 2 + icmp->rest + length + bpf_htons(IPPROTO_ICMPV6) +
			   sum_address(&p->tuple.saddr) + sum_address(&p->tuple.daddr));
}

/* The packet becomes an error about itself, to its sender, with the size that would have fit. */
__attribute__((noinline)) int answer_too_big(struct xdp_md *ctx, struct packet *p)
{
	__u32 quote, headers;
	void *data, *end, *ip;
	__u64 quoted;

	if (!p)
		return VERDICT_TOO_BIG;
	quote = p->family == 4 ? QUOTE4 : QUOTE6;
	headers = sizeof(struct icmp) +
		  (p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	if (!may_tell(ctx, p, quote))
		return VERDICT_TOO_BIG;
	if (!gate_open(0, settings.icmp_rate, p->now))
		return VERDICT_TOO_BIG_LIMITED;
	quoted = sum_bytes(ctx, p->l3, quote);
	if (bpf_xdp_adjust_tail(ctx, (int)(p->l3 + quote) - (int)bpf_xdp_get_buff_len(ctx)) ||
	    bpf_xdp_adjust_head(ctx, -(int)headers))
		return VERDICT_NO_HEADROOM;
	data = frame_start(ctx);
	end = frame_end(ctx);
	if (data + sizeof(struct ethhdr) + 2 * sizeof(struct tag) + 2 * MAX_OVERHEAD > end)
		return VERDICT_NO_HEADROOM;
	for (__u32 i = 0; i < 22 && i < p->l3; i += 2) {
		__u16 *from = data + headers + i;

		*(__u16 *)(data + i) = *from;
	}
	swap_macs(data);
	ip = data + (p->l3 & L3_MASK);
	if (ip + MAX_OVERHEAD > end)
		return VERDICT_NO_HEADROOM;
	if (p->family == 4)
		too_big4(ip, p, quoted);
	else
		too_big6(ip, p, quoted);
	p->egress = ctx->ingress_ifindex;
	return VERDICT_TOO_BIG_ANSWERED;
}

/* ---- errors about flows ---- */

static __always_inline bool is_transport(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

static __always_inline int quote_ipv4(struct xdp_md *ctx, struct quote *q)
{
	struct iphdr *ip = frame_start(ctx) + (q->l3 & OFFSET_MASK);
	__u16 field;

	if (q->l3 + sizeof(*ip) > q->limit || (void *)(ip + 1) > frame_end(ctx))
		return VERDICT_BAD_ICMP;
	if (ip->version != 4 || ip->ihl < 5)
		return VERDICT_BAD_ICMP;
	field = bpf_ntohs(ip->frag_off);
	if (field & IP_FRAGMENT_OFFSET)
		q->fragment = FRAGMENT_LATER;
	else if (field & IP_MORE_FRAGMENTS)
		q->fragment = FRAGMENT_FIRST;
	q->tuple.saddr.v4 = ip->saddr;
	q->tuple.daddr.v4 = ip->daddr;
	q->tuple.proto = ip->protocol;
	q->l4 = q->l3 + ip->ihl * 4;
	return GO_ON;
}

static __always_inline int quote_ipv6(struct xdp_md *ctx, struct quote *q)
{
	struct ipv6hdr *ip = frame_start(ctx) + (q->l3 & OFFSET_MASK);
	struct chain chain = {};

	if (q->l3 + sizeof(*ip) > q->limit || (void *)(ip + 1) > frame_end(ctx))
		return VERDICT_BAD_ICMP;
	if (ip->version != 6)
		return VERDICT_BAD_ICMP;
	__builtin_memcpy(&q->tuple.saddr, &ip->saddr, 32);
	chain.offset = q->l3 + sizeof(*ip);
	chain.limit = q->limit;
	chain.next = ip->nexthdr;
	if (follow(ctx, &chain) != GO_ON)
		return VERDICT_BAD_ICMP;
	q->tuple.proto = chain.next;
	q->l4 = chain.offset;
	q->fragment = chain.fragment;
	return GO_ON;
}

static __noinline int parse_quote(struct xdp_md *ctx, struct packet *p)
{
	struct quote *q = &p->quote;
	struct udphdr *ports;
	int verdict;

	__builtin_memset(q, 0, sizeof(*q));
	q->l3 = p->l4 + sizeof(struct icmp);
	q->limit = p->l3 + p->length;
	verdict = p->family == 4 ? quote_ipv4(ctx, q) : quote_ipv6(ctx, q);
	if (verdict != GO_ON)
		return verdict;
	if (!is_transport(q->tuple.proto))
		return VERDICT_NOT_OURS;
	if (q->fragment == FRAGMENT_LATER)
		return GO_ON;
	ports = frame_start(ctx) + (q->l4 & OFFSET_MASK);
	if (q->l4 > OFFSET_MASK || q->l4 + sizeof(*ports) > q->limit ||
	    (void *)(ports + 1) > frame_end(ctx))
		return VERDICT_BAD_ICMP;
	if (!q->fragment) {
		q->tuple.sport = ports->source;
		q->tuple.dport = ports->dest;
	}
	return GO_ON;
}

/* Changes a transport checksum inside the quote; returns what that does to the one around it. */
static __always_inline __u64 requote_csum(__u16 *csum, __u64 delta, bool udp)
{
	__u16 old = *csum;

	if (udp && !old)
		return 0;
	if (udp)
		csum_update_udp(csum, delta);
	else
		csum_update(csum, delta);
	return delta16(old, *csum);
}

/* The quoted packet's tuple becomes `to`. Returns what that does to the ICMP checksum. */
static __noinline __u64 requote(struct xdp_md *ctx, const struct packet *p, const struct quote *q,
				const struct flow6_key *to)
{
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	void *header = data + (q->l3 & OFFSET_MASK);
	struct udphdr *udp = data + (q->l4 & OFFSET_MASK);
	struct tcphdr *tcp = (void *)udp;
	struct iphdr *four = header;
	__u64 inner, outer;
	__u16 check = 0;

	if ((void *)(four + 1) > end)
		return 0;
	check = four->check;
	inner = outer = readdress(header, end, p->family, &q->tuple, to);
	if (p->family == 4)
		outer += delta16(check, four->check);
	if (q->fragment == FRAGMENT_LATER || (void *)(udp + 1) > end)
		return outer;
	if (!q->fragment) {
		__u64 ports = delta16(q->tuple.sport, to->sport) +
			      delta16(q->tuple.dport, to->dport);

		udp->source = to->sport;
		udp->dest = to->dport;
		inner += ports;
		outer += ports;
	}
	if (q->tuple.proto == IPPROTO_UDP)
		return outer + requote_csum(&udp->check, inner, true);
	if (q->l4 + 18 <= q->limit && (void *)&tcp->check + 2 <= end)
		outer += requote_csum(&tcp->check, inner, false);
	return outer;
}

/* Outer addresses, quoted tuple and the checksums of both. `p->tuple` is the outer one. */
static __noinline void translate_error(struct xdp_md *ctx, const struct packet *p,
				       const struct quote *q, const struct flow6_key *outer,
				       const struct flow6_key *quoted)
{
	__u64 delta = requote(ctx, p, q, quoted), addresses;
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	struct icmp *icmp = data + (p->l4 & OFFSET_MASK);

	addresses = readdress(data + (p->l3 & L3_MASK), end, p->family, &p->tuple, outer);
	if ((void *)(icmp + 1) > end)
		return;
	csum_update(&icmp->csum, delta + (p->family == 6 ? addresses : 0));
}

/* The backend of the flow that the error is about, into p's ids; p->tuple is the client's here. */
static __noinline int backend_of_error(struct packet *p)
{
	struct route r = {};
	struct service *s;
	struct flow *flow;

	s = service_of(p->service);
	if (!s)
		return VERDICT_NO_BACKEND;
	if (keeps_flows(s)) {
		flow = find_flow(p->family, &p->tuple);
		if (!flow || !stands(p, flow, &r))
			flow = opens(p, s) ? find_opening(p->family, &p->tuple, SIDE_CLIENT, NULL) : NULL;
		if (flow && stands(p, flow, &r)) {
			p->source_port = bpf_htons(flow->hop);
			return GO_ON;
		}
		if (s->forward == FORWARD_FULLNAT)
			return VERDICT_NO_FLOW;
	}
	draw_hash(p, s);
	p->backend = choose(p, 0);
	return p->backend ? GO_ON : VERDICT_NO_BACKEND;
}

static __noinline int send_error(struct xdp_md *ctx, struct packet *p)
{
	struct flow6_key *outer = &p->to, *quoted = &p->theirs;
	struct backend *backend = backend_of(p->backend);
	struct frontend *frontend = frontend_of(p->frontend);
	struct service *s = service_of(p->service);
	void *data;
	int verdict;

	if (!backend || !frontend || !s)
		return VERDICT_NO_BACKEND;
	verdict = sendable(ctx, p, s, backend);
	if (verdict != GO_ON)
		return verdict;
	if (s->forward != FORWARD_DSR)
		age(ctx, p);
	if (translates(s)) {
		*outer = p->tuple;
		outer->daddr = backend->addr;
		*quoted = p->quote.tuple;
		quoted->saddr = backend->addr;
		quoted->sport = backend_port(backend, frontend, p->quote.tuple.sport);
		if (s->forward == FORWARD_FULLNAT) {
			outer->saddr = p->family == 4 ? settings.nat_source4 : settings.nat_source6;
			quoted->daddr = outer->saddr;
			quoted->dport = p->source_port;
		}
		translate_error(ctx, p, &p->quote, outer, quoted);
	} else if (s->forward != FORWARD_DSR) {
		verdict = encapsulate(ctx, p, s, backend,
				      tuple_hash(&p->client, p->family, HASH_FIVE_TUPLE));
		if (verdict != GO_ON)
			return verdict;
	}
	data = frame_start(ctx);
	if (data + sizeof(struct ethhdr) > frame_end(ctx))
		return VERDICT_NO_HEADROOM;
	put_macs(data, backend->dmac);
	p->egress = backend->ifindex;
	count_request(p->service, p->backend, p->bytes);
	return VERDICT_ICMP_FORWARDED;
}

/* NOT_OURS: not about a flow towards a frontend. */
static __noinline int error_to_backend(struct xdp_md *ctx, struct packet *p)
{
	int verdict;

	if (!same_address(&p->quote.tuple.saddr, &p->tuple.daddr))
		return VERDICT_NOT_OURS;
	p->to = p->tuple;
	reversed(&p->client, &p->quote.tuple);
	p->tuple = p->client;
	p->fragment = p->quote.fragment;
	verdict = find_frontend(p, &p->tuple);
	if (verdict != GO_ON)
		verdict = VERDICT_NOT_OURS; /* also a quoted fragment: nobody knows its port */
	else
		verdict = backend_of_error(p);
	p->tuple = p->to;
	p->fragment = FRAGMENT_NONE;
	return verdict == GO_ON ? send_error(ctx, p) : verdict;
}

/* NOT_OURS: not about a reply of ours. */
static __noinline int error_to_client(struct xdp_md *ctx, struct packet *p)
{
	struct flow6_key *outer = &p->to;
	struct hop hop = {};
	struct flow *entry;
	int road, verdict;

	reversed(&p->reply, &p->quote.tuple);
	entry = standing_entry(p, &p->reply, FORWARD_NAT, &p->client);
	if (!entry)
		entry = standing_entry(p, &p->reply, FORWARD_FULLNAT, &p->client);
	if (!entry)
		return VERDICT_NOT_OURS;
	*outer = p->tuple;
	if (same_address(&outer->saddr, &p->reply.saddr))
		outer->saddr = p->client.daddr;
	outer->daddr = p->client.saddr;
	road = road_to_client(ctx, p, outer, entry, &hop);
	verdict = passable(ctx, p, road, &hop);
	if (verdict != GO_ON)
		return verdict;
	translate_error(ctx, p, &p->quote, outer, &p->client);
	return send_to_client(ctx, p, road, &hop, VERDICT_ICMP_RETURNED);
}

static __always_inline bool quotes_nat_backend(const struct packet *p)
{
	__u32 bucket = p->family == 4 ? bucket4(p->quote.tuple.daddr.v4) :
					 bucket6(&p->quote.tuple.daddr);

	return kind_of(bucket) & ADDRESS_NAT_BACKEND;
}

static __noinline int icmp_error(struct xdp_md *ctx, struct packet *p)
{
	int verdict;

	verdict = parse_quote(ctx, p);
	if (verdict == VERDICT_NOT_OURS)
		return VERDICT_NOT_OURS;
	if (verdict != GO_ON)
		return p->kinds & ADDRESS_SERVICE &&
		       frontend_entry(p->family, &p->tuple.daddr, 0, 0) ? verdict : VERDICT_NOT_OURS;
	p->now = bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
	verdict = VERDICT_NOT_OURS;
	if (p->kinds & ADDRESS_SERVICE)
		verdict = error_to_backend(ctx, p);
	if (verdict == VERDICT_NOT_OURS && (p->kinds & (ADDRESS_NAT_BACKEND | ADDRESS_NAT_SOURCE) ||
					    quotes_nat_backend(p)))
		verdict = error_to_client(ctx, p);
	return verdict;
}
