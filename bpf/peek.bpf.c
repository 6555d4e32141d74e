/* SPDX-License-Identifier: GPL-2.0-only */
/* Which table is where in a map of maps. Before Linux 6.8, user space that looks
 * at an entry waits for a grace period of RCU, whether there is one or not; a
 * program does not. Run from user space; no packet comes here.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define AT_ONCE 64 /* peeking.py's Answer */

struct peek {
	__u32 first;
	__u32 ids[AT_ONCE]; /* of what is at first, first + 1, ...; 0: nothing */
};

/* The kernel's own; where `id` is in it, its BTF says. */
struct bpf_map {
	__u32 id;
} __attribute__((preserve_access_index));

struct slots {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct slots);
} tables SEC(".maps"); /* or spares: whatever is put in its place */

SEC("syscall")
int peek(struct peek *ctx)
{
	/* Unrolled: the place in a context has to be a constant. */
#pragma unroll
	for (__u32 i = 0; i < AT_ONCE; i++) {
		__u32 index = ctx->first + i;
		struct bpf_map *table = bpf_map_lookup_elem(&tables, &index);

		ctx->ids[i] = table ? table->id : 0;
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
