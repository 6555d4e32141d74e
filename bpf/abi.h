/* SPDX-License-Identifier: GPL-2.0-only */
/* What the program and the daemons tell each other: map keys, map values, and
 * why each packet went where it went.
 *
 * The only definition. `make abi` reads it back from the object's BTF into
 * bpf/abi.py, so Python never restates an offset or a number.
 *
 * Byte order is part of the type: __be* is network order, all else is host
 * order. Every byte has a name, because the kernel hashes padding too.
 * What the program does with these is in docs/packet-path.md.
 */
#pragma once

#include <linux/types.h>

/* Raised when a struct below changes shape or meaning. A program refuses maps
 * of another ABI: the loader compares this with what `meta` says.
 */
enum abi {
	ABI_VERSION = 1,
};

/* An id is an index into an array map (20 bits) and an incarnation (12 bits).
 * The entry at the index repeats the whole id; if it differs, whatever carried
 * the id means nothing any more. Id 0 is nothing, so index 0 is never used.
 */
enum id_layout {
	ID_INDEX_BITS = 20,
	ID_INDEX_MASK = 0xfffff,
};

enum limit {
	POOLS_PER_SERVICE = 8,
	REPLY_CANDIDATES = 4,
	WALK_STEPS = 8,		/* further slots tried before the spare table */
	RETURN_TRIES = 4,	/* further slots tried when a return entry is taken */
	PORT_TRIES = 16,	/* ports tried for one fullnat flow */
	IPV6_HEADERS = 6,	/* extension headers followed */
	LATENCY_BUCKETS = 32,
	PREFILTER_SIZE = 65536,
	TICK_SHIFT = 30,	/* one tick is 2^30 ns, 1.07 s */
};

/* ---- what the reconciler writes ---- */

union address {
	__be32 v4;		/* the other twelve bytes are zero */
	__u8 v6[16];
	__u32 word[4];
	__u64 half[2];
};

/* Frontend maps: exact port; port 0 for "any port" and for the markers that
 * say an address is a service's (protocol 0), that it has frontends of a
 * protocol, or that it answers echo requests (protocol ICMP or ICMPv6).
 */
struct frontend4_key {
	__be32 addr;
	__be16 port;
	__u8 proto;
	__u8 zero;
};

struct frontend6_key {
	__u8 addr[16];
	__be16 port;
	__u8 proto;
	__u8 zero;
};

/* Value of the frontend maps: a frontend's id, or one of these. */
enum frontend_mark {
	FRONTEND_MARK = 0,	/* the address is known, this port is not */
	FRONTEND_ECHO = 1,	/* answer echo requests */
};

struct frontend {
	__u32 id;
	__u32 service;
	union address addr;
	__be16 port;		/* 0: any port; such a frontend never rewrites ports */
	__u8 proto;
	__u8 family;		/* 4 or 6 */
	__u32 zero;
};

enum forward {
	FORWARD_NAT = 1,
	FORWARD_FULLNAT,
	FORWARD_DSR,
	FORWARD_IPIP,
	FORWARD_GUE,
};

enum balance {
	BALANCE_HASH = 1,	/* consistent and maglev: they differ in how slots were filled */
	BALANCE_ROUND_ROBIN,
	BALANCE_RANDOM,
	BALANCE_LEAST_CONNECTIONS,
};

enum hash_fields {
	HASH_FIVE_TUPLE = 1,
	HASH_SOURCE,
	HASH_SOURCE_PORT,	/* source address, service port and protocol */
};

enum service_flag {
	SERVICE_FLOWS_OFF = 1 << 0,	/* table only (ignored for fullnat) */
	SERVICE_DIRECT = 1 << 1,	/* clients also reach backends by their own address */
	SERVICE_FAIL_CLOSED = 1 << 2,	/* no usable backend: drop, do not use all */
	SERVICE_KEEP_DOWN = 1 << 3,	/* flows of a backend that is down stay with it */
};

struct service {
	__u32 id;
	__u8 forward;
	__u8 balance;
	__u8 hash;
	__u8 flags;
	__u32 gate;		/* new flows a tick; 0: no gate */
	__u32 tcp_idle;		/* ticks */
	__u32 udp_idle;
	__u8 pool_count;
	__u8 short_pools;	/* bit i: pool i is below its panic share */
	__u16 zero;
	__u32 pools[POOLS_PER_SERVICE];
	__u64 name;		/* hash of the name: how the reconciler finds it again */
};

/* A pool as one way of filling slots sees it: its table is tables[index of id]. */
struct pool {
	__u32 id;
	__u32 size;		/* slots in the table and in the spare table */
	__u32 step;		/* of the walk; coprime with size, below it */
	__u32 zero;
	__u64 name;		/* hash of pool, fill and size */
};

enum backend_flag {
	BACKEND_FORCED_UP = 1 << 0,
	BACKEND_FORCED_DOWN = 1 << 1,	/* wins over FORCED_UP */
	BACKEND_ASSUME_UP = 1 << 2,	/* usable while its health is unknown */
	BACKEND_NO_NEW = 1 << 3,	/* draining or weight 0: a SYN never keeps it */
};

struct backend {
	__u32 id;
	__u32 ifindex;		/* 0: next hop not resolved */
	union address addr;
	__be16 port;		/* 0: keep the client's */
	__u16 mtu;		/* largest IP packet towards it, outer headers included */
	__u16 weight;
	__u8 family;		/* of addr: 4 or 6 */
	__u8 flags;
	__u8 dmac[6];
	__u8 smac[6];
	__u32 until;		/* tick at which a draining backend's flows end; 0: never */
	__u64 name;		/* hash of "pool/backend" */
	__u64 zero;
};

/* Which frontends send to this backend address: how a reply without an entry
 * finds the one that it answers. More than REPLY_CANDIDATES: count says so and
 * nothing is derived.
 */
struct reply {
	__u32 count;
	__u32 zero;
	struct {
		__u32 frontend;
		__u32 backend;
	} candidate[REPLY_CANDIDATES];
};

enum setting_flag {
	SETTING_REDIRECT_ALWAYS = 1 << 0, /* veth loses XDP_TX frames: redirect to the same interface instead */
};

struct settings {
	__u32 flags;
	__u32 sample_mask;	/* latency: one packet in mask + 1; ~0: none */
	__u32 hop_epoch;	/* raised when a route or neighbour changes; low 8 bits count */
	__u32 closing;		/* ticks a closed flow is remembered */
	__u32 rest;		/* ticks a released fullnat port rests */
	__u32 icmp_rate;	/* ICMP errors a tick; 0: no limit */
	__be16 gue_port;
	__u16 port_low;		/* fullnat's source ports, both inclusive */
	__u16 port_high;
	__u16 zero;
	union address tunnel_source4;
	union address tunnel_source6;
	union address nat_source4;
	union address nat_source6;
};

/* Indexed by a hash of an address (hash.h): what such an address may be. */
enum address_kind {
	ADDRESS_SERVICE = 1 << 0,	/* destination: a service's */
	ADDRESS_TABLE_FIRST = 1 << 1,	/* ... with a service that keeps no flows */
	ADDRESS_NAT_BACKEND = 1 << 2,	/* source: a nat backend, replies pass here */
	ADDRESS_NAT_SOURCE = 1 << 3,	/* destination: fullnat's own source address */
};

struct prefilter {
	__u8 kinds[PREFILTER_SIZE];
};

/* Health checks by the way that clients take: healthcheck marks the socket, and via.bpf.c
 * sends what carries the mark as `probes` says. A mark is PROBE_MARK in the upper bits.
 */
enum probe_layout {
	PROBE_MARK = 0xeb5,
	PROBE_NUMBER_BITS = 20,
	PROBE_LIMIT = 65536,	/* at most so many; the map has room for a change of all of them */
};

struct probe {
	union address backend;	/* where the socket is connected to */
	union address service;	/* whom the packet is for */
	union address source;	/* of the outer header: zero in dsr */
	__be16 gue_port;
	__u8 forward;		/* dsr, ipip or gue */
	__u8 family;		/* of all three addresses */
	__u32 zero;
};

/* The program reads nothing here: it is for whoever asks what this box forwards. */
struct meta {
	__u32 abi;
	__u32 phase;		/* enum phase */
	__u64 generation;
	__u64 applied_at;	/* seconds since the epoch */
	__u8 digest[32];	/* of the configuration */
	char commit[64];	/* git commit, when known, else empty */
};

enum phase {
	PHASE_IDLE = 0,
	PHASE_APPLYING = 1,
};

/* ---- what healthcheck writes ---- */

enum health_state {
	HEALTH_UNKNOWN = 0,
	HEALTH_UP = 1,
	HEALTH_DOWN = 2,
};

struct health {
	__u32 id;		/* of the backend; another one: unknown */
	__u8 state;
	__u8 ramp;		/* slots whose hash is above it count as down; 255: none */
	__u16 zero;
};

/* ---- what the program writes ---- */

struct flow4_key {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 side;		/* enum side: only in the opening maps */
	__u16 zero;
};

/* Also the program's own form of a 5-tuple, of both families. */
struct flow6_key {
	union address saddr;
	union address daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 side;
	__u16 zero;
};

enum side {
	SIDE_CLIENT = 0,
	SIDE_BACKEND = 1,
};

enum flow_state {
	FLOW_CLIENT_FIN = 1 << 0,
	FLOW_BACKEND_FIN = 1 << 1,
	FLOW_RESET = 1 << 2,
	FLOW_CLOSED = 1 << 3,	/* no longer counted as live */
};

struct flow {
	__u32 backend;
	__u32 frontend;
	__u32 seen;		/* tick of the last packet */
	__u16 hop;		/* returns: next hop to the client (0: none yet); fullnat flows: source port */
	__u8 hop_epoch;
	__u8 state;
};

struct return4 {
	struct flow4_key client;	/* the client's 5-tuple towards the frontend */
	struct flow flow;
};

struct return6 {
	struct flow6_key client;
	struct flow flow;
};

/* A next hop towards clients. Never changes once it has an index. */
struct hop {
	__u32 ifindex;
	__u8 dmac[6];
	__u8 smac[6];
	__u16 mtu;
	__u16 zero;
};

struct service_state {
	__u64 gate;		/* tick << 32 | new flows in it */
	__u32 cursor;		/* round-robin */
	__u32 zero;
};

struct counters {
	__u64 packets;
	__u64 bytes;
	__u64 flows;
	__u64 reply_packets;
	__u64 reply_bytes;
};

/* Counted once per packet. The number is the metric's identity: only append. */
enum verdict {
	VERDICT_NOT_OURS,	/* passed to the kernel untouched */
	VERDICT_TRUNCATED,	/* ends before its addresses: passed to the kernel untouched */
	VERDICT_FORWARDED,	/* sent to a backend */
	VERDICT_RETURNED,	/* reply sent to the client */
	VERDICT_RETURN_PASSED,	/* reply translated; the kernel finds the client's neighbour */
	VERDICT_ICMP_FORWARDED,	/* error about a flow, sent to its backend */
	VERDICT_ICMP_RETURNED,	/* error from a backend, sent to the client */
	VERDICT_ECHO_ANSWERED,
	VERDICT_TOO_BIG_ANSWERED, /* does not fit the next hop: sender told */
	VERDICT_BAD_IP_HEADER,	/* version or header length that cannot be, or too many extension headers */
	VERDICT_BAD_IP_LENGTH,	/* total length beyond the frame or below the header */
	VERDICT_BAD_TCP,	/* header cut short, or its length lies */
	VERDICT_BAD_UDP,	/* the same for UDP */
	VERDICT_BAD_ICMP,	/* the same for ICMP, or for what an error quotes */
	VERDICT_FRAGMENT,	/* for an address without a service that takes fragments */
	VERDICT_NO_BACKEND,	/* no pool has a usable one */
	VERDICT_NO_NEXT_HOP,	/* the backend's neighbour is not resolved */
	VERDICT_NO_ROUTE,	/* towards the client */
	VERDICT_TTL_EXPIRED,
	VERDICT_TOO_BIG,	/* does not fit, and the sender cannot be told */
	VERDICT_TOO_BIG_LIMITED, /* does not fit; over the rate of ICMP errors */
	VERDICT_GATED,		/* over the service's new-flow gate, and it needs the entry */
	VERDICT_RETURN_TAKEN,	/* nat: every return entry tried belongs to another flow */
	VERDICT_PORTS_TAKEN,	/* fullnat: every source port tried is in use */
	VERDICT_NO_FLOW,	/* fullnat: neither a known flow nor the start of one */
	VERDICT_UNKNOWN_PORT,	/* fullnat: to the port range, but no flow's */
	VERDICT_NO_ROOM,	/* a flow map refused the entry */
	VERDICT_NO_HEADROOM,	/* the driver left no room to encapsulate */
	VERDICT_MISCONFIGURED,	/* the maps contradict each other: family or mode */
	VERDICT_COUNT,
};

struct tally {
	__u64 packets;
	__u64 bytes;
};

struct cpu {
	__u64 packets;		/* what the latency sampling counts by */
	__u64 jiffies;		/* when `tick` was read: it is good for as long as these last */
	__u64 tick;
	struct tally verdict[VERDICT_COUNT];
	__u64 latency[LATENCY_BUCKETS]; /* bucket b: below 2^b ns, at least 2^(b-1) */
};

/* The sweep's report: one run over the flow maps of a family. */
struct sweep {
	__u32 now;		/* in: tick */
	__u32 expired;		/* out: entries deleted */
	__u64 flows;		/* out: live flows left */
};

_Static_assert(sizeof(struct frontend4_key) == 8, "frontend4_key has a hole");
_Static_assert(sizeof(struct frontend6_key) == 20, "frontend6_key has a hole");
_Static_assert(sizeof(struct frontend) == 32, "frontend has a hole");
_Static_assert(sizeof(struct service) == 64, "service is one cache line");
_Static_assert(sizeof(struct backend) == 64, "backend is one cache line");
_Static_assert(sizeof(struct settings) == 96, "settings has a hole");
_Static_assert(sizeof(struct probe) == 56, "probe has a hole");
_Static_assert(sizeof(struct meta) == 120, "meta has a hole");
_Static_assert(sizeof(struct health) == 8, "health is one write");
_Static_assert(sizeof(struct flow4_key) == 16, "flow4_key has a hole");
_Static_assert(sizeof(struct flow6_key) == 40, "flow6_key has a hole");
_Static_assert(sizeof(struct flow) == 16, "96 bytes an IPv4 flow: 16 + 16 + the kernel's 64");
_Static_assert(sizeof(struct return4) == 32, "return4 has a hole");
_Static_assert(sizeof(struct return6) == 56, "return6 has a hole");
_Static_assert(sizeof(struct hop) == 20, "hop has a hole");
