// SPDX-License-Identifier: GPL-2.0-only
/* Gives every repeat of BPF_PROG_TEST_RUN the packet that the first one got.
 *
 * A test run does not restore the packet: from the second repeat on, a program
 * that rewrites or encapsulates sees its own output. `restore4` and `restore6`
 * put length and headers back, name another flow when asked to, and tail-call
 * one of `targets`, which is how the balancer is measured as it is.
 * The programs below them are the yardsticks it is compared with.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../../bpf/abi.h"

/* Which of the flows the next packet belongs to. */
enum order {
	ORDER_ONE = 0,		/* always the template's */
	ORDER_SEQUENTIAL,
	ORDER_RANDOM,
};

/* The headers as words of eight bytes, in the pieces in which a program reads
 * them: a load that straddles two fresh stores waits for both to reach the
 * cache, which no packet off the wire makes it do.
 */
struct packet {
	__u32 length;
	__u32 order;
	__u32 flows;
	__u32 state;		/* of the sequence; any start is good */
	__u32 target;
	__u32 zero;
	__u64 word[10];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packet SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u32);
} targets SEC(".maps");

/* As large as the balancer's own flow map, with the same key and value. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow4_key);
	__type(value, struct flow);
} bare SEC(".maps");

/* What a target adds or takes, it adds and takes in front. */
static __always_inline void restore_length(struct xdp_md *ctx, const struct packet *p)
{
	int grown = ctx->data_end - ctx->data - p->length;

	if (grown)
		bpf_xdp_adjust_head(ctx, grown);
}

static __always_inline __u32 next_flow(struct packet *p)
{
	if (p->order == ORDER_ONE)
		return 0;
	if (p->order == ORDER_SEQUENTIAL)
		return p->state++ % p->flows;
	p->state = p->state * 1664525 + 1013904223;
	return (__u64)p->state * p->flows >> 32;
}

static __always_inline void put(void *data, int offset, __u64 word)
{
	*(__u64 *)(data + offset) = word;
}

/* A flow's number goes into the low bits of the source address. The program
 * verifies no checksum of what it forwards, so none is kept right.
 */
static __always_inline int restore_headers4(struct xdp_md *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data;

	if (data + 54 > (void *)(long)ctx->data_end)
		return 0;
	put(data, 0, p->word[0]);
	put(data, 6, p->word[1]);
	put(data, 14, p->word[2]);
	put(data, 18, p->word[3]);
	put(data, 26, p->word[4] | bpf_htonl(next_flow(p)));	/* both addresses */
	put(data, 34, p->word[5]);
	put(data, 38, p->word[6]);
	put(data, 46, p->word[7]);
	return 1;
}

static __always_inline int restore_headers6(struct xdp_md *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data;

	if (data + 74 > (void *)(long)ctx->data_end)
		return 0;
	put(data, 0, p->word[0]);
	put(data, 6, p->word[1]);
	put(data, 14, p->word[2]);
	put(data, 22, p->word[3]);
	put(data, 30, p->word[4] | (__u64)bpf_htonl(next_flow(p)) << 32);
	put(data, 38, p->word[5]);
	put(data, 46, p->word[6]);
	put(data, 54, p->word[7]);
	put(data, 58, p->word[8]);
	put(data, 66, p->word[9]);
	return 1;
}

SEC("xdp.frags")
int restore4(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct packet *p = bpf_map_lookup_elem(&packet, &zero);

	if (!p)
		return XDP_ABORTED;
	restore_length(ctx, p);
	if (restore_headers4(ctx, p))
		bpf_tail_call(ctx, &targets, p->target);
	return XDP_ABORTED;
}

SEC("xdp.frags")
int restore6(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct packet *p = bpf_map_lookup_elem(&packet, &zero);

	if (!p)
		return XDP_ABORTED;
	restore_length(ctx, p);
	if (restore_headers6(ctx, p))
		bpf_tail_call(ctx, &targets, p->target);
	return XDP_ABORTED;
}

/* ---- yardsticks ---- */

SEC("xdp.frags")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

static __always_inline int swap_macs(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u16 *mac = (__u16 *)eth, half;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < ETH_ALEN / 2; i++) {
		half = mac[i];
		mac[i] = mac[i + ETH_ALEN / 2];
		mac[i + ETH_ALEN / 2] = half;
	}
	return XDP_TX;
}

SEC("xdp.frags")
int swap(struct xdp_md *ctx)
{
	return swap_macs(ctx);
}

SEC("xdp.frags")
int grow(struct xdp_md *ctx)
{
	struct ethhdr *eth;

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(struct iphdr)))
		return XDP_ABORTED;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memset(eth, 2, 2 * ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
	return XDP_TX;
}

static __always_inline int flow_key(struct xdp_md *ctx, struct flow4_key *key)
{
	struct iphdr *ip = (void *)(long)ctx->data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);

	if ((void *)(tcp + 1) > (void *)(long)ctx->data_end)
		return 0;
	*key = (struct flow4_key){
		.saddr = ip->saddr,
		.daddr = ip->daddr,
		.sport = tcp->source,
		.dport = tcp->dest,
		.proto = ip->protocol,
	};
	return 1;
}

SEC("xdp.frags")
int look_up(struct xdp_md *ctx)
{
	struct flow4_key key;
	struct flow *flow;

	if (!flow_key(ctx, &key))
		return XDP_ABORTED;
	flow = bpf_map_lookup_elem(&bare, &key);
	if (!flow || !flow->backend)
		return XDP_PASS;
	return swap_macs(ctx);
}

SEC("xdp.frags")
int remember(struct xdp_md *ctx)
{
	struct flow flow = { .backend = 1 };
	struct flow4_key key;

	if (!flow_key(ctx, &key) || bpf_map_update_elem(&bare, &key, &flow, BPF_ANY))
		return XDP_ABORTED;
	return XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
