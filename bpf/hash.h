/* SPDX-License-Identifier: GPL-2.0-only */
/* Which slot a tuple falls on, which prefilter byte an address has.
 *
 * The control plane computes the same numbers (docs/packet-path.md, section 4):
 * a change here is a change of every table's meaning, on all nodes at once.
 */
#pragma once

#include "abi.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are little-endian");

#define HASH_SEED 0x6576656e6b65656cULL
#define HASH_SPREAD 0x9E3779B97F4A7C15ULL
#define HASH_FINISH 0xD6E8FEB86659FD93ULL
#define SPREAD32 0x9E3779B1U

static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * HASH_SPREAD;
	return hash ^ hash >> 32;
}

static __always_inline __u64 finish(__u64 hash)
{
	hash *= HASH_FINISH;
	return hash ^ hash >> 32;
}

static __always_inline __u64 ports_word(const struct flow6_key *t, __u8 fields)
{
	if (fields == HASH_SOURCE)
		return 0;
	return (fields == HASH_FIVE_TUPLE ? t->sport : 0) | (__u64)t->dport << 16 |
	       (__u64)t->proto << 32;
}

static __always_inline __u64 tuple_hash(const struct flow6_key *t, __u8 family, __u8 fields)
{
	__u8 whole = fields == HASH_FIVE_TUPLE;
	__u64 hash = HASH_SEED;

	if (family == 4) {
		hash = mix(hash, t->saddr.word[0] | (__u64)(whole ? t->daddr.word[0] : 0) << 32);
	} else {
		hash = mix(hash, t->saddr.half[0]);
		hash = mix(hash, t->saddr.half[1]);
		hash = mix(hash, whole ? t->daddr.half[0] : 0);
		hash = mix(hash, whole ? t->daddr.half[1] : 0);
	}
	return finish(mix(hash, ports_word(t, fields)));
}

/* One byte a slot: a ramp lets through the slots whose byte is not above it. */
static __always_inline __u32 slot_hash(__u32 slot)
{
	return slot * SPREAD32 >> 24;
}

static __always_inline __u32 bucket4(__u32 addr)
{
	return addr * SPREAD32 >> 16;
}

static __always_inline __u32 bucket6(const union address *addr)
{
	return (addr->half[0] * HASH_SPREAD ^ addr->half[1]) * HASH_SPREAD >> 48;
}
