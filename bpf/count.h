/* SPDX-License-Identifier: GPL-2.0-only */
/* What is counted, and where: per CPU, so that nobody waits for anybody. */
#pragma once

#include "maps.h"
#include "parse.h"

static __always_inline struct cpu *this_cpu(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cpus, &zero);
}

/* The coarse clock moves once a jiffy, and asking it costs as much as all of parsing. */
static __always_inline __u32 tick_of(struct cpu *cpu)
{
	__u64 jiffies = bpf_jiffies64();

	if (cpu->jiffies != jiffies) {
		cpu->jiffies = jiffies;
		cpu->tick = bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
	}
	return cpu->tick;
}

static __always_inline void count_verdict(struct cpu *cpu, __u32 verdict, __u32 bytes)
{
	/* The compiler may know better what a function returns than the verifier:
	 * without this, clang 18 drops the check that the verifier asks for.
	 */
	asm volatile("" : "+r"(verdict));
	if (verdict >= VERDICT_COUNT)
		return;
	cpu->verdict[verdict].packets++;
	cpu->verdict[verdict].bytes += bytes;
}

static __always_inline void count_latency(struct cpu *cpu, __u64 nanoseconds)
{
	__u32 bucket = 0;

	for (__u32 left = nanoseconds; left && bucket < LATENCY_BUCKETS - 1; left >>= 1)
		bucket++;
	if (bucket < LATENCY_BUCKETS)
		cpu->latency[bucket]++;
}

static __always_inline struct counters *service_counters(__u32 id)
{
	__u32 index = id & ID_INDEX_MASK;

	return bpf_map_lookup_elem(&service_counts, &index);
}

static __always_inline struct counters *backend_counters(__u32 id)
{
	__u32 index = id & ID_INDEX_MASK;

	return bpf_map_lookup_elem(&backend_counts, &index);
}

static __always_inline void count_request(__u32 service, __u32 backend, __u32 bytes)
{
	struct counters *of_service = service_counters(service);
	struct counters *of_backend = backend_counters(backend);

	if (of_service) {
		of_service->packets++;
		of_service->bytes += bytes;
	}
	if (of_backend) {
		of_backend->packets++;
		of_backend->bytes += bytes;
	}
}

static __always_inline void count_reply(__u32 service, __u32 backend, __u32 bytes)
{
	struct counters *of_service = service_counters(service);
	struct counters *of_backend = backend_counters(backend);

	if (of_service) {
		of_service->reply_packets++;
		of_service->reply_bytes += bytes;
	}
	if (of_backend) {
		of_backend->reply_packets++;
		of_backend->reply_bytes += bytes;
	}
}

/* Live flows of a backend. Shared by the CPUs; what eviction makes of it, the sweep puts right. */
static __always_inline void count_live(__u32 backend, __s32 change)
{
	__u32 index = backend & ID_INDEX_MASK;
	__u32 *live_flows = bpf_map_lookup_elem(&live, &index);

	if (!live_flows)
		return;
	if (!__sync_fetch_and_add(live_flows, change) && change < 0)
		__sync_fetch_and_add(live_flows, -change); /* never below none */
}

static __always_inline void count_new_flow(const struct packet *p)
{
	struct counters *service = service_counters(p->service);
	struct counters *backend = backend_counters(p->backend);

	if (service)
		service->flows++;
	if (backend)
		backend->flows++;
	count_live(p->backend, 1);
}
