/* SPDX-License-Identifier: GPL-2.0-only */
/* Bytes in, struct packet out. What a packet is, and whether it is whole, is
 * decided here and nowhere else; later code only re-proves to the verifier
 * that the offsets found here lie inside the frame.
 */
#pragma once

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "hash.h"
#include "maps.h"

/* Returned instead of a verdict while none has been reached. */
#define GO_ON VERDICT_COUNT

#define L3_MASK 31		/* 14, 18 or 22: for the verifier, like the next */
#define OFFSET_MASK 0xfff	/* no header that is read starts beyond: the verifier wants a bound */
#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define IP_DONT_FRAGMENT 0x4000
#define MAX_TAGS 2

enum what {
	WHAT_DATAGRAM,		/* UDP, and fragments of UDP and TCP */
	WHAT_SYN,		/* SYN alone */
	WHAT_ACK,		/* ACK without SYN, FIN and RST */
	WHAT_TCP,		/* any other TCP packet */
	WHAT_ECHO,		/* echo request */
	WHAT_ERROR,		/* ICMP error */
};

enum fragment {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER,
};

/* The packet that an ICMP error quotes: where it is, and its tuple as it was sent. */
struct quote {
	struct flow6_key tuple;
	__u32 l3;
	__u32 l4;
	__u32 limit;		/* where the ICMP message ends */
	__u32 fragment;
};

struct packet {
	struct flow6_key tuple;	/* as on the wire; fragments: ports 0 */
	__u64 draw;		/* the choice's hash, cursor or random number */
	__u32 bytes;		/* frame length */
	__u32 now;		/* tick */
	__u32 frontend;		/* ids, once known */
	__u32 service;
	__u32 backend;
	__u32 egress;		/* interface to send to */
	__u16 l3;		/* offsets */
	__u16 l4;
	__u16 length;		/* of the IP packet, by its header */
	__u16 fits;		/* too big: the largest IP packet that would have fit */
	__be16 source_port;	/* fullnat's */
	__u16 hop;
	__u8 family;
	__u8 what;
	__u8 fragment;
	__u8 ending;		/* FLOW_CLIENT_FIN and FLOW_RESET, as the flags say */
	__u8 kinds;		/* enum address_kind, of both addresses */
	__u8 modulo;		/* draw is a cursor, not a hash */
	__u8 two_draws;		/* least-connections */
	__u8 plain;		/* no IP options, no extension headers */

	/* Room for tuples while one is worked on: what is here is whole only in
	 * the function that says so, and does not survive calls of those below.
	 */
	struct flow6_key reply;	/* claim_return, follow_ending: as replies carry it */
	struct flow6_key theirs; /* claim_return: of the entry that is in the way */
	struct flow6_key client; /* give_back, icmp_error: the client's tuple */
	struct flow6_key to;	/* deliver, give_back: what the packet's becomes */
	struct quote quote;	/* icmp_error */
};

/* One packet is worked on per CPU; 512 bytes of stack would not do. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} scratch SEC(".maps");

/* Global functions that use parts of the packet as keys look it up anew: in what they are given, which is memory
 * of any kind to the verifier, Linux 6.1 accepts none.
 */
static __always_inline struct packet *this_packet(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline struct packet *fresh_packet(void)
{
	struct packet *p = this_packet();

	if (p)
		__builtin_memset(p, 0, __builtin_offsetof(struct packet, reply));
	return p;
}

struct tag {
	__be16 tci;
	__be16 proto;
};

/* The frame's borders. By hand, because clang may copy the 32 bits that it thinks
 * they are, and the verifier then no longer sees a pointer; volatile, because they
 * change when the frame does.
 */
static __always_inline void *frame_start(struct xdp_md *ctx)
{
	void *start;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(start)
		     : "r"(ctx), "i"(__builtin_offsetof(struct xdp_md, data)));
	return start;
}

static __always_inline void *frame_end(struct xdp_md *ctx)
{
	void *end;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(end)
		     : "r"(ctx), "i"(__builtin_offsetof(struct xdp_md, data_end)));
	return end;
}

/* A chain of IPv6 extension headers: where it is, where it must end. */
struct chain {
	__u32 offset;
	__u32 limit;
	__u8 next;
	__u8 fragment;
	__u16 zero;
};

struct extension {
	__u8 next;
	__u8 length;		/* in 8 bytes, without the first 8 */
	__be16 fragment;	/* fragment header: offset and M */
	__u32 rest;
};

static __always_inline bool is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

/* Follows the chain to the transport header, or to the fragment header of a later fragment. */
__attribute__((noinline)) int follow(struct xdp_md *ctx, struct chain *c)
{
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	struct extension *header;

	if (!c)
		return VERDICT_BAD_IP_HEADER;
	for (int i = 0; i < IPV6_HEADERS; i++) {
		if (!is_extension(c->next))
			return GO_ON;
		if (c->offset > OFFSET_MASK)
			return VERDICT_BAD_IP_HEADER;
		header = data + (c->offset & OFFSET_MASK);
		if ((void *)(header + 1) > end || c->offset + sizeof(*header) > c->limit)
			return VERDICT_BAD_IP_LENGTH;
		if (c->next == IPPROTO_FRAGMENT) {
			__u16 field = bpf_ntohs(header->fragment);

			c->next = header->next;
			c->offset += sizeof(*header);
			if (field & 0xfff8) {
				c->fragment = FRAGMENT_LATER;
				return GO_ON;
			}
			if (field & 1)
				c->fragment = FRAGMENT_FIRST;
			continue;
		}
		c->next = header->next;
		c->offset += (header->length + 1) * 8;
		if (c->offset > c->limit)
			return VERDICT_BAD_IP_LENGTH;
	}
	return is_extension(c->next) ? VERDICT_BAD_IP_HEADER : GO_ON;
}

static __always_inline __u8 kind_of(__u32 bucket)
{
	return prefilter.kinds[bucket & (PREFILTER_SIZE - 1)];
}

static __always_inline __u8 kinds(__u32 source, __u32 destination)
{
	return (kind_of(destination) & ~ADDRESS_NAT_BACKEND) |
	       (kind_of(source) & ADDRESS_NAT_BACKEND);
}

/* Ethernet, tags, and the addresses: enough to know that a packet is nobody's. */
static __always_inline int parse_addresses(struct xdp_md *ctx, struct packet *p)
{
	void *data = frame_start(ctx);
	void *end = frame_end(ctx);
	struct ethhdr *eth = data;
	__u32 l3 = sizeof(*eth);
	__be16 proto;

	p->bytes = end - data;
	if ((void *)(eth + 1) > end)
		return VERDICT_TRUNCATED;
	proto = eth->h_proto;
	for (int i = 0; i < MAX_TAGS; i++) {
		struct tag *tag = data + l3;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			return VERDICT_TRUNCATED;
		proto = tag->proto;
		l3 += sizeof(*tag);
	}
	p->l3 = l3;
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + l3;

		if ((void *)(ip + 1) > end)
			return VERDICT_TRUNCATED;
		p->family = 4;
		p->kinds = kinds(bucket4(ip->saddr), bucket4(ip->daddr));
		if (!p->kinds && ip->protocol != IPPROTO_ICMP)
			return VERDICT_NOT_OURS;
		p->tuple.saddr.v4 = ip->saddr;
		p->tuple.daddr.v4 = ip->daddr;
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + l3;

		if ((void *)(ip + 1) > end)
			return VERDICT_TRUNCATED;
		p->family = 6;
		__builtin_memcpy(&p->tuple.saddr, &ip->saddr, 32);
		p->kinds = kinds(bucket6(&p->tuple.saddr), bucket6(&p->tuple.daddr));
		if (!p->kinds && ip->nexthdr != IPPROTO_ICMPV6)
			return VERDICT_NOT_OURS;
	} else {
		return VERDICT_NOT_OURS;
	}
	return GO_ON;
}

/* Does the frame hold what the IP header claims? Its tail may lie in fragments of the buffer. */
static __always_inline bool holds(struct xdp_md *ctx, struct packet *p)
{
	if (p->l3 + p->length <= p->bytes)
		return true;
	p->bytes = bpf_xdp_get_buff_len(ctx);
	return p->l3 + p->length <= p->bytes;
}

static __always_inline int parse_ipv4(struct xdp_md *ctx, struct packet *p)
{
	struct iphdr *ip = frame_start(ctx) + (p->l3 & L3_MASK);
	__u32 header, field;

	if ((void *)(ip + 1) > frame_end(ctx))
		return VERDICT_TRUNCATED;
	if (ip->version != 4 || ip->ihl < 5)
		return VERDICT_BAD_IP_HEADER;
	header = ip->ihl * 4;
	p->length = bpf_ntohs(ip->tot_len);
	if (p->length < header || !holds(ctx, p))
		return VERDICT_BAD_IP_LENGTH;
	field = bpf_ntohs(ip->frag_off);
	if (field & IP_FRAGMENT_OFFSET)
		p->fragment = FRAGMENT_LATER;
	else if (field & IP_MORE_FRAGMENTS)
		p->fragment = FRAGMENT_FIRST;
	p->plain = ip->ihl == 5;
	p->l4 = p->l3 + header;
	p->tuple.proto = ip->protocol;
	return GO_ON;
}

static __always_inline int parse_ipv6(struct xdp_md *ctx, struct packet *p)
{
	struct ipv6hdr *ip = frame_start(ctx) + (p->l3 & L3_MASK);
	struct chain chain = {};
	__u32 length;
	int verdict;

	if ((void *)(ip + 1) > frame_end(ctx))
		return VERDICT_TRUNCATED;
	if (ip->version != 6)
		return VERDICT_BAD_IP_HEADER;
	length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (length > 0xffff)
		return VERDICT_BAD_IP_LENGTH;
	p->length = length;
	if (!holds(ctx, p))
		return VERDICT_BAD_IP_LENGTH;
	p->l4 = p->l3 + sizeof(*ip);
	p->plain = !is_extension(ip->nexthdr);
	p->tuple.proto = ip->nexthdr;
	if (p->plain)
		return GO_ON;
	chain.offset = p->l4;
	chain.limit = p->l3 + p->length;
	chain.next = ip->nexthdr;
	verdict = follow(ctx, &chain);
	if (verdict != GO_ON)
		return verdict;
	p->l4 = chain.offset;
	p->fragment = chain.fragment;
	p->tuple.proto = chain.next;
	return chain.offset > OFFSET_MASK ? VERDICT_BAD_IP_HEADER : GO_ON;
}

static __always_inline int parse_tcp(struct packet *p, struct tcphdr *tcp, void *end, __u32 segment)
{
	if (segment < sizeof(*tcp) || (void *)(tcp + 1) > end || tcp->doff < 5)
		return VERDICT_BAD_TCP;
	if (p->fragment)
		return GO_ON;
	if (tcp->doff * 4 > segment)
		return VERDICT_BAD_TCP;
	p->tuple.sport = tcp->source;
	p->tuple.dport = tcp->dest;
	p->ending = (tcp->fin ? FLOW_CLIENT_FIN : 0) | (tcp->rst ? FLOW_RESET : 0);
	p->what = WHAT_TCP;
	if (!p->ending && tcp->ack != tcp->syn)
		p->what = tcp->syn ? WHAT_SYN : WHAT_ACK;
	return GO_ON;
}

static __always_inline int parse_udp(struct packet *p, struct udphdr *udp, void *end, __u32 segment)
{
	__u32 length;

	if (segment < sizeof(*udp) || (void *)(udp + 1) > end)
		return VERDICT_BAD_UDP;
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || (!p->fragment && length > segment))
		return VERDICT_BAD_UDP;
	if (!p->fragment) {
		p->tuple.sport = udp->source;
		p->tuple.dport = udp->dest;
	}
	return GO_ON;
}

struct icmp {
	__u8 type;
	__u8 code;
	__u16 csum;
	__u32 rest;
};

static __always_inline bool is_error(__u8 family, __u8 type)
{
	return family == 4 ? type == 3 || type == 11 || type == 12 : type >= 1 && type <= 4;
}

static __always_inline int parse_icmp(struct packet *p, struct icmp *icmp, void *end, __u32 segment)
{
	if (p->fragment)
		return VERDICT_NOT_OURS;
	if (segment < sizeof(*icmp) || (void *)(icmp + 1) > end)
		return VERDICT_BAD_ICMP;
	if (is_error(p->family, icmp->type))
		p->what = WHAT_ERROR;
	else if (icmp->type == (p->family == 4 ? 8 : 128) && !icmp->code)
		p->what = WHAT_ECHO;
	else
		return VERDICT_NOT_OURS;
	return GO_ON;
}

static __always_inline int parse_transport(struct xdp_md *ctx, struct packet *p)
{
	void *l4 = frame_start(ctx) + (p->l4 & OFFSET_MASK);
	void *end = frame_end(ctx);
	__u32 segment = p->l3 + p->length - p->l4;
	__u8 proto = p->tuple.proto;

	if (proto == IPPROTO_TCP)
		return p->fragment == FRAGMENT_LATER ? GO_ON : parse_tcp(p, l4, end, segment);
	if (proto == IPPROTO_UDP)
		return p->fragment == FRAGMENT_LATER ? GO_ON : parse_udp(p, l4, end, segment);
	if (proto == (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return parse_icmp(p, l4, end, segment);
	return VERDICT_NOT_OURS;
}

/* All but the addresses, which parse_addresses has read. */
static __always_inline int parse(struct xdp_md *ctx, struct packet *p)
{
	int verdict = p->family == 4 ? parse_ipv4(ctx, p) : parse_ipv6(ctx, p);

	return verdict == GO_ON ? parse_transport(ctx, p) : verdict;
}
