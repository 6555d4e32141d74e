// SPDX-License-Identifier: GPL-2.0-only
/* One packet, top to bottom: parse, find the flow or choose a backend, send.
 * A packet that is for no service and answers none goes to the kernel untouched.
 */
#include "maps.h"

#include "count.h"
#include "csum.h"
#include "flow.h"
#include "forward.h"
#include "hash.h"
#include "icmp.h"
#include "learn.h"
#include "parse.h"
#include "reply.h"
#include "select.h"
#include "shortcut.h"
#include "sweep.h"

/* A malformed packet is dropped only when it is for a service. */
static __noinline int malformed(struct packet *p, int verdict)
{
	__u8 proto = verdict == VERDICT_BAD_TCP ? IPPROTO_TCP :
		     verdict == VERDICT_BAD_UDP ? IPPROTO_UDP : 0;

	if (verdict < VERDICT_BAD_IP_HEADER || verdict > VERDICT_BAD_ICMP ||
	    !(p->kinds & ADDRESS_SERVICE))
		return VERDICT_NOT_OURS;
	return frontend_entry(p->family, &p->tuple.daddr, 0, proto) ? verdict : VERDICT_NOT_OURS;
}

/* A packet of TCP or UDP, or a fragment of it. */
static __always_inline int transport(struct xdp_md *ctx, struct packet *p)
{
	int verdict = VERDICT_NOT_OURS;

	if (p->kinds & ADDRESS_SERVICE)
		verdict = forward(ctx, p);
	if (verdict == VERDICT_NOT_OURS && p->kinds & (ADDRESS_NAT_BACKEND | ADDRESS_NAT_SOURCE))
		verdict = give_back(ctx, p);
	return verdict == VERDICT_TOO_BIG ? answer_too_big(ctx, p) : verdict;
}

static __noinline int understand(struct xdp_md *ctx, struct packet *p)
{
	int verdict = parse_addresses(ctx, p);

	if (verdict != GO_ON)
		return verdict;
	verdict = parse(ctx, p);
	return verdict == GO_ON ? GO_ON : malformed(p, verdict);
}

static __always_inline int balance(struct xdp_md *ctx, struct packet *p)
{
	int verdict = understand(ctx, p);

	if (verdict != GO_ON)
		return verdict;
	if (p->what < WHAT_ECHO)
		return transport(ctx, p);
	if (p->what == WHAT_ERROR)
		return icmp_error(ctx, p);
	return p->kinds & ADDRESS_SERVICE ? answer_echo(ctx, p) : VERDICT_NOT_OURS;
}

/* The only place that names what XDP does with a packet. */
static __always_inline int act(struct xdp_md *ctx, int verdict, __u32 egress)
{
	switch (verdict) {
	case VERDICT_NOT_OURS:
	case VERDICT_TRUNCATED:
	case VERDICT_RETURN_PASSED:
		return XDP_PASS;
	case VERDICT_FORWARDED:
	case VERDICT_RETURNED:
	case VERDICT_ICMP_FORWARDED:
	case VERDICT_ICMP_RETURNED:
	case VERDICT_ECHO_ANSWERED:
	case VERDICT_TOO_BIG_ANSWERED:
		if (egress == ctx->ingress_ifindex && !(settings.flags & SETTING_REDIRECT_ALWAYS))
			return XDP_TX;
		return bpf_redirect(egress, 0);
	default:
		return XDP_DROP;
	}
}

SEC("xdp.frags")
int lb(struct xdp_md *ctx)
{
	struct cpu *cpu = this_cpu();
	struct lane lane;
	__u64 started = 0;
	int verdict, action;

	if (!cpu)
		return XDP_PASS;
	if (!(cpu->packets++ & settings.sample_mask))
		started = bpf_ktime_get_ns();
	lane.bytes = 0;
	lane.egress = 0;
	verdict = shortcut(ctx, &lane, cpu);
	if (verdict == LONG_WAY) {
		struct packet *p = fresh_packet();

		if (!p)
			return XDP_PASS;
		verdict = balance(ctx, p);
		lane.bytes = p->bytes;
		lane.egress = p->egress;
	}
	if (verdict == VERDICT_NOT_OURS)
		lane.bytes = bpf_xdp_get_buff_len(ctx); /* nobody has looked how far it goes */
	count_verdict(cpu, verdict, lane.bytes);
	action = act(ctx, verdict, lane.egress);
	if (started)
		count_latency(cpu, bpf_ktime_get_ns() - started);
	return action;
}

/* The object's types are the contract that bpf/abi.py is generated from, and clang
 * leaves out those that nothing names. Never called, so never loaded.
 */
struct contract {
	enum abi abi;
	enum id_layout id_layout;
	enum limit limit;
	enum frontend_mark frontend_mark;
	enum forward forward;
	enum balance balance;
	enum hash_fields hash_fields;
	enum service_flag service_flag;
	enum backend_flag backend_flag;
	enum setting_flag setting_flag;
	enum address_kind address_kind;
	enum phase phase;
	enum health_state health_state;
	enum side side;
	enum flow_state flow_state;
	enum probe_layout probe_layout; /* via.bpf.c's */
	struct probe probe;
	enum verdict verdict;
};

__attribute__((used)) int contract(struct contract *all)
{
	return all ? all->verdict : 0;
}

char LICENSE[] SEC("license") = "GPL";
