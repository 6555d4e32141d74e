/* SPDX-License-Identifier: GPL-2.0-only */
/* The headers that ipip and gue put around a packet, as values of their fields:
 * the same for clients' packets (forward.h) and for probes (via.bpf.c).
 */
#pragma once

#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>

#include "abi.h"
#include "csum.h"

#define OUTER_TTL 64
#define OUTER_DF 0x4000
#define GUE_PORT_BASE 0xc000
#define GUE_PORT_SPREAD 0x3fff

struct outer_udp {
	__be16 source;
	__be16 dest;
	__be16 length;
	__u16 csum;
};

static __always_inline __u8 class_of(const void *header, __u8 family)
{
	const __u8 *bytes = header;

	return family == 4 ? bytes[1] : (bytes[0] << 4 | bytes[1] >> 4);
}

/* One of the ports that flows are spread over, by the hash of the client's tuple. */
static __always_inline __be16 gue_source(__u64 hash)
{
	return bpf_htons(GUE_PORT_BASE | (hash & GUE_PORT_SPREAD));
}

static __always_inline void outer_ipv4(struct iphdr *ip, __u8 class, __u16 length, __u8 proto,
				       const union address *from, const union address *to)
{
	__u32 first = 0x45 | (__u32)class << 8 | (__u32)bpf_htons(length) << 16;
	__u32 second = (__u32)bpf_htons(OUTER_DF) << 16; /* id 0 */
	__u32 third = OUTER_TTL | (__u32)proto << 8;
	__u32 source = from->v4, destination = to->v4;
	__u64 sum = (__u64)first + second + third + source + destination;
	__u32 *word = (__u32 *)ip;

	word[0] = first;
	word[1] = second;
	word[2] = third | (__u32)(__u16)~fold(sum) << 16;
	word[3] = source;
	word[4] = destination;
}

static __always_inline void outer_ipv6(struct ipv6hdr *ip, __u8 class, __u16 length, __u8 proto,
				       const union address *from, const union address *to)
{
	*(__u32 *)ip = bpf_htonl(6U << 28 | (__u32)class << 20);
	ip->payload_len = bpf_htons(length - sizeof(*ip));
	ip->nexthdr = proto;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(&ip->saddr, from, 16);
	__builtin_memcpy(&ip->daddr, to, 16);
}
