// SPDX-License-Identifier: GPL-2.0-only
/* Health checks by the way that clients take (`via: service`). A probe's socket is connected to the
 * backend's own address, and carries a mark: so the kernel finds next hop and source as always, and
 * a service address that is this machine's own is no trap. On its way out the packet is turned to the
 * service's address, in the headers that a client's packet would be put in; a reply is turned back
 * before the kernel looks at it. Without the mark nothing is touched, and nothing is counted: clients'
 * packets never come here, but for those that the XDP program gave to the kernel.
 *
 * A packet with a mark that cannot be sent as the mark says is dropped: the answer to it, from
 * the backend's own address, would be a lie.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "hash.h"
#include "outer.h"

#define L3 ETH_HLEN
#define NO_OPTIONS 0x45		/* an IPv4 header of 20 bytes */
#define FRAGMENT_BITS 0x3fff	/* offset, and more to come */
#define ICMP4_UNREACHABLE 3
#define ICMP4_EXPIRED 11
#define ICMP6_ERRORS 4		/* types 1 to 4 */
#define ICMP_HEADER 8
#define NEXT_FILTER TC_ACT_UNSPEC

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2 * PROBE_LIMIT);
	__type(key, __u32);	/* the mark */
	__type(value, struct probe);
} probes SEC(".maps");

/* What replies look like, and the backend that each is from. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow6_key);
	__type(value, union address);
} probing SEC(".maps");

/* A packet without options, extension headers or fragments: all that sockets send and servers answer. */
struct seen {
	struct flow6_key tuple;
	__u32 l3;		/* where it begins, in the frame */
	__u32 l4;
	__u32 length;		/* from l3 on */
	__u8 family;
	__u8 class;
};

static __always_inline bool read_header(struct __sk_buff *skb, __u32 l3, struct seen *p)
{
	__u8 first;

	p->l3 = l3;
	p->tuple = (struct flow6_key){};
	if (bpf_skb_load_bytes(skb, l3, &first, 1))
		return false;
	if (first == NO_OPTIONS) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)) || ip.frag_off & bpf_htons(FRAGMENT_BITS))
			return false;
		p->family = 4;
		p->class = class_of(&ip, 4);
		p->l4 = l3 + sizeof(ip);
		p->length = bpf_ntohs(ip.tot_len);
		p->tuple.saddr.v4 = ip.saddr;
		p->tuple.daddr.v4 = ip.daddr;
		p->tuple.proto = ip.protocol;
		return true;
	}
	if (first >> 4 == 6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)))
			return false;
		p->family = 6;
		p->class = class_of(&ip, 6);
		p->l4 = l3 + sizeof(ip);
		p->length = bpf_ntohs(ip.payload_len) + sizeof(ip);
		__builtin_memcpy(&p->tuple.saddr, &ip.saddr, 16);
		__builtin_memcpy(&p->tuple.daddr, &ip.daddr, 16);
		p->tuple.proto = ip.nexthdr;
		return true;
	}
	return false;
}

static __always_inline bool read_ports(struct __sk_buff *skb, struct seen *p)
{
	__be16 ports[2];

	if (p->tuple.proto != IPPROTO_TCP && p->tuple.proto != IPPROTO_UDP)
		return false;
	if (bpf_skb_load_bytes(skb, p->l4, ports, sizeof(ports)))
		return false;
	p->tuple.sport = ports[0];
	p->tuple.dport = ports[1];
	return true;
}

/* Whether this is an Ethernet frame with an IP packet right behind its header. */
static __always_inline bool is_ip(struct __sk_buff *skb)
{
	__be16 type;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return false;
	return !bpf_skb_load_bytes(skb, ETH_HLEN - sizeof(type), &type, sizeof(type)) && type == skb->protocol;
}

/* ---- one address for another, with every checksum that covers it ---- */

enum end {
	SOURCE,
	DESTINATION,
};

static __always_inline __u32 offset_of(const struct seen *p, enum end end)
{
	if (p->family == 4)
		return p->l3 + (end == SOURCE ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));
	return p->l3 + (end == SOURCE ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr));
}

/* The checksum is at `csum` (0: none covers it) and of a segment with a pseudo header. The helpers know
 * what to do where it is left to the device, or was made by one (CHECKSUM_PARTIAL, CHECKSUM_COMPLETE).
 */
static __always_inline int readdress(struct __sk_buff *skb, const struct seen *p, enum end end, __u32 csum,
				     const union address *to)
{
	const union address *from = end == SOURCE ? &p->tuple.saddr : &p->tuple.daddr;
	__u64 zero_stays = p->tuple.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 at = offset_of(p, end);

	if (p->family == 4) {
		if (bpf_l3_csum_replace(skb, p->l3 + offsetof(struct iphdr, check), from->v4, to->v4, 4))
			return -1;
		if (csum && bpf_l4_csum_replace(skb, csum, from->v4, to->v4, BPF_F_PSEUDO_HDR | zero_stays | 4))
			return -1;
		return bpf_skb_store_bytes(skb, at, &to->v4, 4, 0);
	}
	if (csum) {
		__s64 delta = bpf_csum_diff((__be32 *)from, 16, (__be32 *)to, 16, 0);

		if (delta < 0 || bpf_l4_csum_replace(skb, csum, 0, delta, BPF_F_PSEUDO_HDR | zero_stays))
			return -1;
	}
	/* IPv6 has no header checksum that would make up for the address in the device's sum. */
	return bpf_skb_store_bytes(skb, at, to, 16, csum ? BPF_F_RECOMPUTE_CSUM : 0);
}

static __always_inline __u32 csum_of(const struct seen *p)
{
	if (p->tuple.proto == IPPROTO_TCP)
		return p->l4 + offsetof(struct tcphdr, check);
	return p->l4 + offsetof(struct udphdr, check);
}

static __always_inline bool same(const union address *a, const union address *b)
{
	return a->half[0] == b->half[0] && a->half[1] == b->half[1];
}

/* ---- out ---- */

static __always_inline void turned(const struct flow6_key *of, struct flow6_key *key)
{
	*key = (struct flow6_key){};
	key->saddr = of->daddr;
	key->daddr = of->saddr;
	key->sport = of->dport;
	key->dport = of->sport;
	key->proto = of->proto;
}

/* The outer UDP checksum, from headers alone: the segment inside comes to nothing with its pseudo
 * header, whoever computes its checksum, and whenever.
 */
static __always_inline __u16 outer_csum(struct __sk_buff *skb, const struct seen *p, const struct outer_udp *udp,
					const struct probe *to)
{
	__u32 payload = p->length - sizeof(struct ipv6hdr);
	struct ipv6hdr inner;
	__u32 *word = (__u32 *)&inner;
	__u64 sum = (__u64)udp->source + udp->dest + udp->length + udp->length + bpf_htons(IPPROTO_UDP) +
		    sum_address(&to->source) + sum_address(&to->backend);
	__u64 pseudo = (__u64)bpf_htons(payload) + ((__u16)p->tuple.proto << 8) + sum_address(&p->tuple.saddr) +
		       sum_address(&to->service);
	__u16 csum;

	if (bpf_skb_load_bytes(skb, p->l3, &inner, sizeof(inner)))
		return 0;
	for (int i = 0; i < (int)sizeof(inner) / 4; i++)
		sum += word[i];
	csum = ~fold(sum + (__u16)~fold(pseudo));
	return csum ?: 0xffff;
}

static __always_inline int encapsulate(struct __sk_buff *skb, const struct seen *p, const struct flow6_key *client,
				       const struct probe *to)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO |
		      (p->family == 4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6);
	__u32 ip = p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u8 inner = p->family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	bool gue = to->forward == FORWARD_GUE;
	__u32 extra = ip + (gue ? sizeof(struct outer_udp) : 0);
	__u8 proto = gue ? IPPROTO_UDP : inner;
	struct outer_udp udp = {};

	if (gue) {
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
		udp.source = gue_source(tuple_hash(client, p->family, HASH_FIVE_TUPLE));
		udp.dest = to->gue_port;
		udp.length = bpf_htons(p->length + sizeof(udp));
		if (p->family == 6) {
			/* The device would cut it, and nobody make each piece's outer checksum: TCP sends it again. */
			if (skb->gso_size)
				return -1;
			udp.csum = outer_csum(skb, p, &udp, to);
		}
	}
	if (bpf_skb_adjust_room(skb, extra, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	if (gue && bpf_skb_store_bytes(skb, L3 + ip, &udp, sizeof(udp), 0))
		return -1;
	if (p->family == 4) {
		struct iphdr outer;

		outer_ipv4(&outer, p->class, p->length + extra, proto, &to->source, &to->backend);
		return bpf_skb_store_bytes(skb, L3, &outer, sizeof(outer), 0);
	}
	struct ipv6hdr outer;

	outer_ipv6(&outer, p->class, p->length + extra, proto, &to->source, &to->backend);
	return bpf_skb_store_bytes(skb, L3, &outer, sizeof(outer), 0);
}

static __always_inline int send(struct __sk_buff *skb, const struct probe *to)
{
	struct flow6_key client, reply;
	struct seen p;

	if (!is_ip(skb) || !read_header(skb, L3, &p) || !read_ports(skb, &p))
		return TC_ACT_SHOT;
	if (p.family != to->family || !same(&p.tuple.daddr, &to->backend))
		return TC_ACT_SHOT; /* another's mark */
	client = p.tuple;
	client.daddr = to->service;
	turned(&client, &reply);
	if (bpf_map_update_elem(&probing, &reply, &to->backend, BPF_ANY))
		return TC_ACT_SHOT;
	if (readdress(skb, &p, DESTINATION, csum_of(&p), &to->service))
		return TC_ACT_SHOT;
	if (to->forward != FORWARD_DSR && encapsulate(skb, &p, &client, to))
		return TC_ACT_SHOT;
	return NEXT_FILTER;
}

SEC("tc")
int via_out(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;
	struct probe *to;

	if (mark >> PROBE_NUMBER_BITS != PROBE_MARK)
		return NEXT_FILTER;
	skb->mark = 0; /* a device below this one may have the program, too */
	to = bpf_map_lookup_elem(&probes, &mark);
	return to ? send(skb, to) : TC_ACT_SHOT;
}

/* ---- back ---- */

static __always_inline bool is_error(struct __sk_buff *skb, const struct seen *p)
{
	__u8 type;

	if (p->tuple.proto != (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return false;
	if (bpf_skb_load_bytes(skb, p->l4, &type, 1))
		return false;
	if (p->family == 4)
		return type == ICMP4_UNREACHABLE || type == ICMP4_EXPIRED;
	return type >= 1 && type <= ICMP6_ERRORS;
}

/* What the error quotes was for the service: the socket knows of the backend only. An IPv4 header that
 * changes with its checksum leaves the sum of the message as it is. The quoted L4 checksum nobody reads.
 */
static __always_inline int turn_quoted(struct __sk_buff *skb, const struct seen *p, const struct seen *quoted,
				       const union address *backend)
{
	__s64 delta;

	if (p->family == 4)
		return readdress(skb, quoted, DESTINATION, 0, backend);
	delta = bpf_csum_diff((__be32 *)&quoted->tuple.daddr, 16, (__be32 *)backend, 16, 0);
	if (delta < 0 || bpf_l4_csum_replace(skb, p->l4 + 2, 0, delta, 0))
		return -1;
	return bpf_skb_store_bytes(skb, offset_of(quoted, DESTINATION), backend, 16, 0);
}

/* Errors come from the backend in the service's name, or from a router in its own. */
static __always_inline void turn_error(struct __sk_buff *skb, const struct seen *p)
{
	union address backend, *found;
	struct flow6_key reply;
	struct seen quoted;

	if (!read_header(skb, p->l4 + ICMP_HEADER, &quoted) || quoted.family != p->family ||
	    !read_ports(skb, &quoted))
		return;
	turned(&quoted.tuple, &reply);
	found = bpf_map_lookup_elem(&probing, &reply);
	if (!found)
		return;
	backend = *found;
	if (turn_quoted(skb, p, &quoted, &backend) || !same(&p->tuple.saddr, &quoted.tuple.daddr))
		return;
	readdress(skb, p, SOURCE, p->family == 4 ? 0 : p->l4 + 2, &backend);
}

SEC("tc")
int via_in(struct __sk_buff *skb)
{
	union address backend, *found;
	struct seen p;

	if (!is_ip(skb) || !read_header(skb, L3, &p))
		return NEXT_FILTER;
	if (is_error(skb, &p)) {
		turn_error(skb, &p);
		return NEXT_FILTER;
	}
	if (!read_ports(skb, &p))
		return NEXT_FILTER;
	found = bpf_map_lookup_elem(&probing, &p.tuple);
	if (found) {
		backend = *found;
		readdress(skb, &p, SOURCE, csum_of(&p), &backend);
	}
	return NEXT_FILTER;
}

char LICENSE[] SEC("license") = "GPL";
