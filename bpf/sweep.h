/* SPDX-License-Identifier: GPL-2.0-only */
/* Every few seconds, from user space: entries that are over go, and live flows
 * are counted anew, because an LRU evicts without telling anybody.
 */
#pragma once

#include "flow.h"
#include "maps.h"
#include "select.h"

#define UNUSED __attribute__((unused))

enum entry {
	ENTRY_FLOW,
	ENTRY_OPENING,
	ENTRY_RETURN,
};

/* How long an entry is kept without packets. */
static __always_inline __u32 patience(const struct flow *flow, const struct service *s,
				      __u8 proto, enum entry kind)
{
	if (kind == ENTRY_OPENING)
		return settings.closing;
	if (flow->state & FLOW_CLOSED)
		return kind == ENTRY_RETURN ? settings.rest : settings.closing;
	return proto == IPPROTO_TCP ? s->tcp_idle : s->udp_idle;
}

/* Counts the flow if it lives; true if the entry has to go. */
static __always_inline bool visit(const struct flow *flow, __u8 proto, enum entry kind,
				  bool counted, struct sweep *report)
{
	__u32 index = flow->backend & ID_INDEX_MASK;
	struct route r = {};
	__u32 *count;

	if (!find_route(flow, &r) ||
	    is_idle(flow, report->now, patience(flow, r.service, proto, kind))) {
		report->expired++;
		return true;
	}
	if (!counted || flow->state & FLOW_CLOSED)
		return false;
	report->flows++;
	count = bpf_map_lookup_elem(&recount, &index);
	if (count)
		*count += 1;
	return false;
}

static long sweep_flow4(void *map, struct flow4_key *key, struct flow *flow, struct sweep *report)
{
	if (visit(flow, key->proto, ENTRY_FLOW, true, report))
		bpf_map_delete_elem(map, key);
	return 0;
}

static long sweep_flow6(void *map, struct flow6_key *key, struct flow *flow, struct sweep *report)
{
	if (visit(flow, key->proto, ENTRY_FLOW, true, report))
		bpf_map_delete_elem(map, key);
	return 0;
}

static long sweep_return4(void *map, struct flow4_key *key, struct return4 *e, struct sweep *report)
{
	if (visit(&e->flow, key->proto, ENTRY_RETURN, false, report))
		bpf_map_delete_elem(map, key);
	return 0;
}

static long sweep_return6(void *map, struct flow6_key *key, struct return6 *e, struct sweep *report)
{
	if (visit(&e->flow, key->proto, ENTRY_RETURN, false, report))
		bpf_map_delete_elem(map, key);
	return 0;
}

static long sweep_opening4(void *map, struct flow4_key *key, struct return4 *e,
			   struct sweep *report)
{
	if (visit(&e->flow, key->proto, ENTRY_OPENING, key->side == SIDE_CLIENT, report))
		bpf_map_delete_elem(map, key);
	return 0;
}

static long sweep_opening6(void *map, struct flow6_key *key, struct return6 *e,
			   struct sweep *report)
{
	if (visit(&e->flow, key->proto, ENTRY_OPENING, key->side == SIDE_CLIENT, report))
		bpf_map_delete_elem(map, key);
	return 0;
}

static long start_count(UNUSED void *map, UNUSED __u32 *index, __u32 *count, UNUSED void *nothing)
{
	*count = 0;
	return 0;
}

static long take_count(UNUSED void *map, __u32 *index, __u32 *live_flows, UNUSED void *nothing)
{
	__u32 at = *index, *count = bpf_map_lookup_elem(&recount, &at);

	if (count && *live_flows != *count)
		*live_flows = *count;
	return 0;
}

SEC("syscall")
int sweep(struct sweep *request)
{
	struct sweep report = { .now = request->now };

	bpf_for_each_map_elem(&recount, start_count, NULL, 0);
	bpf_for_each_map_elem(&flows4, sweep_flow4, &report, 0);
	bpf_for_each_map_elem(&flows6, sweep_flow6, &report, 0);
	bpf_for_each_map_elem(&opening4, sweep_opening4, &report, 0);
	bpf_for_each_map_elem(&opening6, sweep_opening6, &report, 0);
	bpf_for_each_map_elem(&returns4, sweep_return4, &report, 0);
	bpf_for_each_map_elem(&returns6, sweep_return6, &report, 0);
	bpf_for_each_map_elem(&live, take_count, NULL, 0);
	*request = report;
	return 0;
}
