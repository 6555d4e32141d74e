/* SPDX-License-Identifier: GPL-2.0-only */
/* Internet checksums, changed in place (RFC 1624, eqn. 3) or made from few words.
 *
 * A `delta` is a one's complement sum of what goes out (~old) and what comes in
 * (new), kept in 64 bits so that nothing is folded before the end. Words keep
 * the byte order of the wire: the sum does not mind.
 */
#pragma once

#include "abi.h"

/* Of at most 2^16 words of 32 bits: a sum below 2^48. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u64 delta16(__u16 old, __u16 new)
{
	return (__u64)(__u16)~old + new;
}

static __always_inline __u64 delta32(__u32 old, __u32 new)
{
	return (__u64)(__u32)~old + new;
}

static __always_inline __u64 sum_address(const union address *addr)
{
	return (__u64)addr->word[0] + addr->word[1] + addr->word[2] + addr->word[3];
}

static __always_inline __u64 delta_address(const union address *old, const union address *new)
{
	return delta32(old->word[0], new->word[0]) + delta32(old->word[1], new->word[1]) +
	       delta32(old->word[2], new->word[2]) + delta32(old->word[3], new->word[3]);
}

static __always_inline void csum_update(__u16 *csum, __u64 delta)
{
	*csum = ~fold((__u64)(__u16)~*csum + delta);
}

/* The TTL, first byte of its word, goes down by one: the checksum goes up by as much. */
static __always_inline void csum_age(__u16 *csum)
{
	__u32 sum = (__u32)*csum + 1;

	*csum = sum + (sum >= 0xffff);
}

/* 0 in a UDP header says "no checksum": a sum that comes out as 0 is sent as its other form. */
static __always_inline void csum_update_udp(__u16 *csum, __u64 delta)
{
	csum_update(csum, delta);
	if (!*csum)
		*csum = 0xffff;
}
