// SPDX-License-Identifier: GPL-2.0-only
/* The far end of ipip and gue, for backends whose kernel has no tunnel devices:
 * takes the outer headers off what comes for us in IP-in-IP (protocol 4 or 41)
 * or in GUE variant 1 (UDP), and lets the kernel have the rest.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum {
	GUE_PORT = 6080,
};

/* The bytes from the Ethernet header to the inner packet; 0 if there is none. */
static __always_inline int outer_length(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct ipv6hdr *ip6;
	struct udphdr *udp;
	struct iphdr *ip4;
	int length, protocol;

	if (data + sizeof(*eth) + sizeof(*ip6) > end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		ip4 = data + sizeof(*eth);
		length = sizeof(*ip4);
		protocol = ip4->ihl == 5 ? ip4->protocol : 0;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		ip6 = data + sizeof(*eth);
		length = sizeof(*ip6);
		protocol = ip6->nexthdr;
	} else {
		return 0;
	}
	if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6)
		return length;
	udp = data + sizeof(*eth) + length;
	if (protocol != IPPROTO_UDP || (void *)(udp + 1) > end)
		return 0;
	return udp->dest == bpf_htons(GUE_PORT) ? length + (int)sizeof(*udp) : 0;
}

SEC("xdp")
int decap(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	int length = outer_length(data, end);
	struct ethhdr eth;
	__u8 *inner;

	if (!length || data + sizeof(eth) > end)
		return XDP_PASS;
	__builtin_memcpy(&eth, data, sizeof(eth));
	if (bpf_xdp_adjust_head(ctx, length))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	inner = data + sizeof(eth);
	if ((void *)(inner + 1) > end)
		return XDP_DROP;
	eth.h_proto = *inner >> 4 == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	__builtin_memcpy(data, &eth, sizeof(eth));
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
