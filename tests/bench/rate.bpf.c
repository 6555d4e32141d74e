// SPDX-License-Identifier: GPL-2.0-only
/* Both ends of a line on which packets are counted: `generate` makes each frame
 * anew and sends it, `sink` counts and drops it, `bare` is the least that
 * forwards one.
 *
 * Live frames come out of a page pool and go back to it as they are: whoever
 * only touched up the frame would send what the balancer made of an earlier
 * one. So every byte that is sent is written first.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum {
	LENGTH = 60,		/* the least that Ethernet carries, without its checksum */
	SHORTEST = 54,		/* a SYN whose padding a router's kernel took off */
	GENERATORS = 2,
	BACKENDS = 2,
	FIRST_PORT = 1024,
	PORTS = 64,		/* of one source address; the next flow has the next address */
	KEEP_ONE_IN = 1024,
	KEPT = 80,
};

/* What to send. Sums are those of the headers without what differs from flow
 * to flow, of 16-bit words as they lie in memory, not folded.
 */
struct stream {
	__u64 word[7];
	__u32 tail;		/* of the frame */
	__u32 flows;
	__u32 state;		/* of the sequence; any start is good */
	__u32 saddr;		/* the first; host order */
	__u32 dport;		/* likewise */
	__u32 dports;		/* how many: a power of two */
	__u32 ip_sum;
	__u32 l4_sum;
	__u32 l4_check;		/* offset of the checksum */
	__u32 ifindex;
	__u32 padding[8];	/* two generators never write to one cache line */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GENERATORS);
	__type(key, __u32);
	__type(value, struct stream);
} streams SEC(".maps");

/* Who frames are for, by destination address, and the rest. */
struct arrived {
	__u64 packets[BACKENDS + 1];
	__u8 kept[KEPT];	/* one of the last frames */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arrived);
} arrivals SEC(".maps");

/* MAC addresses as the first six bytes of a word, the others 0. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BACKENDS);
	__type(key, __u32);
	__type(value, __u64);
} backends SEC(".maps");

struct next_hop {
	__u8 macs[12];		/* destination and source, as in a frame */
	__u32 ifindex;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct next_hop);
} next_hop SEC(".maps");

static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	return ~sum;
}

static __always_inline __u32 next_flow(struct stream *s)
{
	s->state = s->state * 1664525 + 1013904223;
	return (__u64)s->state * s->flows >> 32;
}

static __always_inline void write_template(const struct stream *s, void *data)
{
	__u64 *words = data;

#pragma unroll
	for (int i = 0; i < 7; i++)
		words[i] = s->word[i];
	*(__u32 *)(data + 56) = s->tail;
}

static __always_inline void write_flow(const struct stream *s, __u32 flow, void *data)
{
	__u32 saddr = bpf_htonl(s->saddr + flow / PORTS);
	__u16 sport = bpf_htons(FIRST_PORT + flow % PORTS);
	__u16 dport = bpf_htons(s->dport + (flow & (s->dports - 1)));
	__u32 address = (saddr & 0xffff) + (saddr >> 16);

	*(__u16 *)(data + 24) = folded(s->ip_sum + address);
	*(__u32 *)(data + 26) = saddr;
	*(__u16 *)(data + 34) = sport;
	*(__u16 *)(data + 36) = dport;
	if (s->l4_check == 40)
		*(__u16 *)(data + 40) = folded(s->l4_sum + address + sport + dport);
	else
		*(__u16 *)(data + 50) = folded(s->l4_sum + address + sport + dport);
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 generator = bpf_get_smp_processor_id() % GENERATORS;
	struct stream *s = bpf_map_lookup_elem(&streams, &generator);
	void *data = (void *)(long)ctx->data;

	if (!s || data + LENGTH > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	write_template(s, data);
	write_flow(s, next_flow(s), data);
	return bpf_redirect(s->ifindex, 0);
}

static __always_inline int whose(__u64 mac)
{
	__u32 first = 0, second = 1;
	__u64 *one = bpf_map_lookup_elem(&backends, &first);
	__u64 *other = bpf_map_lookup_elem(&backends, &second);

	if (one && mac == *one)
		return 0;
	return other && mac == *other ? 1 : BACKENDS;
}

/* The helper is as old as live frames are. */
static __always_inline void keep(struct xdp_md *ctx, struct arrived *a)
{
	__u32 length = ctx->data_end - ctx->data;

	if (length >= KEPT)
		bpf_xdp_load_bytes(ctx, 0, a->kept, KEPT);
	else if (length >= LENGTH)
		bpf_xdp_load_bytes(ctx, 0, a->kept, LENGTH);
	else
		bpf_xdp_load_bytes(ctx, 0, a->kept, SHORTEST);
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct arrived *a;
	__u32 zero = 0;
	int who;

	if (data + SHORTEST > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;	/* neighbours have to find each other */
	a = bpf_map_lookup_elem(&arrivals, &zero);
	if (!a)
		return XDP_ABORTED;
	who = whose(*(__u64 *)data & 0xffffffffffffULL);
	if (a->packets[who]++ % KEEP_ONE_IN == 0)
		keep(ctx, a);
	return XDP_DROP;
}

SEC("xdp")
int bare(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct ethhdr *eth = data;
	struct next_hop *hop;
	__u32 zero = 0;

	if (data + LENGTH > (void *)(long)ctx->data_end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	hop = bpf_map_lookup_elem(&next_hop, &zero);
	if (!hop)
		return XDP_ABORTED;
	__builtin_memcpy(eth, hop->macs, sizeof(hop->macs));
	return bpf_redirect(hop->ifindex, 0);
}

char LICENSE[] SEC("license") = "GPL";
