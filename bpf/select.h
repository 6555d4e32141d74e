/* SPDX-License-Identifier: GPL-2.0-only */
/* From ids to entries, from a frontend to its service, from a service to a
 * backend. An id means something only while the entry at its index repeats it.
 *
 * walk() and choose() are global functions: the verifier proves each once,
 * whatever calls them, which keeps the retries of nat affordable.
 */
#pragma once

#include "maps.h"
#include "parse.h"

static __always_inline struct frontend *frontend_of(__u32 id)
{
	__u32 index = id & ID_INDEX_MASK;
	struct frontend *f = bpf_map_lookup_elem(&frontends, &index);

	return f && f->id == id && id ? f : NULL;
}

static __always_inline struct service *service_of(__u32 id)
{
	__u32 index = id & ID_INDEX_MASK;
	struct service *s = bpf_map_lookup_elem(&services, &index);

	return s && s->id == id && id ? s : NULL;
}

static __always_inline struct backend *backend_of(__u32 id)
{
	__u32 index = id & ID_INDEX_MASK;
	struct backend *b = bpf_map_lookup_elem(&backends, &index);

	return b && b->id == id && id ? b : NULL;
}

static __always_inline struct health *health_of(__u32 id)
{
	__u32 index = id & ID_INDEX_MASK;
	struct health *h = bpf_map_lookup_elem(&health, &index);

	return h && h->id == id ? h : NULL;
}

/* By whole words, like flow keys (flow.h). */
static __always_inline void frontend_words(struct frontend4_key *key, __u32 addr, __be16 port,
					   __u8 proto)
{
	__u32 *word = (__u32 *)key;

	word[0] = addr;
	word[1] = port | (__u32)proto << 16;
}

/* What the frontend maps say of (address, port, protocol): NULL where they say nothing. */
static __always_inline __u32 *frontend_entry(__u8 family, const union address *addr, __be16 port,
					     __u8 proto)
{
	struct frontend4_key four;
	struct frontend6_key six = {};

	if (family == 4) {
		frontend_words(&four, addr->v4, port, proto);
		return bpf_map_lookup_elem(&frontends4, &four);
	}
	__builtin_memcpy(six.addr, addr, sizeof(six.addr));
	six.port = port;
	six.proto = proto;
	return bpf_map_lookup_elem(&frontends6, &six);
}

static __always_inline bool adopt_frontend(struct packet *p, const __u32 *id)
{
	struct frontend *frontend = id ? frontend_of(*id) : NULL;

	if (!frontend || !service_of(frontend->service))
		return false;
	p->frontend = frontend->id;
	p->service = frontend->service;
	return true;
}

/* GO_ON: p->frontend and p->service are set. NOT_OURS: not for a frontend. */
static __always_inline int find_frontend(struct packet *p, const struct flow6_key *t)
{
	__u32 *any;

	if (!p->fragment &&
	    adopt_frontend(p, frontend_entry(p->family, &t->daddr, t->dport, t->proto)))
		return GO_ON;
	any = frontend_entry(p->family, &t->daddr, 0, t->proto);
	if (adopt_frontend(p, any))
		return GO_ON;
	return any && p->fragment ? VERDICT_FRAGMENT : VERDICT_NOT_OURS;
}

/* May a new packet go there? `whole`: the pool is used regardless of health. */
static __always_inline bool usable(__u32 id, bool whole, __u32 ramp_byte)
{
	struct backend *backend = backend_of(id);
	struct health *h;

	if (!backend || backend->flags & BACKEND_FORCED_DOWN)
		return false;
	if (whole || backend->flags & BACKEND_FORCED_UP)
		return true;
	h = health_of(id);
	if (!h || h->state == HEALTH_UNKNOWN)
		return backend->flags & BACKEND_ASSUME_UP;
	return h->state == HEALTH_UP && ramp_byte <= h->ramp;
}

/* Must a flow leave it? Unknown is no reason. */
static __always_inline bool down_for_flows(const struct backend *backend)
{
	struct health *h;

	if (backend->flags & (BACKEND_FORCED_DOWN | BACKEND_FORCED_UP))
		return backend->flags & BACKEND_FORCED_DOWN;
	h = health_of(backend->id);
	return h && h->state == HEALTH_DOWN;
}

static __always_inline struct pool *pool_of(__u32 id)
{
	__u32 index = id & ID_INDEX_MASK;
	struct pool *pool = bpf_map_lookup_elem(&pools, &index);

	return pool && pool->id == id && id && pool->size ? pool : NULL;
}

enum how {
	WALK_RETRY = 0xff,	/* mask: which retry of nat this is */
	WALK_MODULO = 1 << 8,	/* the draw counts slots, it is no hash */
	WALK_WHOLE = 1 << 9,
};

static __always_inline __u32 first_slot(const struct pool *pool, __u64 draw, __u32 how)
{
	__u64 size = pool->size;
	__u64 slot = how & WALK_MODULO ? draw % size : (draw >> 32) * size >> 32;

	if (how & WALK_RETRY)
		slot = (slot + (__u64)(how & WALK_RETRY) * pool->step) % size;
	return slot;
}

/* The backend id that a pool has for a draw, 0 if none is usable. */
__attribute__((noinline)) __u32 walk(__u32 pool_id, __u64 draw, __u32 how)
{
	__u32 index = pool_id & ID_INDEX_MASK;
	struct pool *pool = pool_of(pool_id);
	__u32 first, slot, *id;
	void *table;

	table = bpf_map_lookup_elem(&tables, &index);
	if (!pool || !table)
		return 0;
	slot = first = first_slot(pool, draw, how);
	for (int i = 0; i <= WALK_STEPS; i++) {
		id = bpf_map_lookup_elem(table, &slot);
		if (id && usable(*id, how & WALK_WHOLE, slot_hash(slot)))
			return *id;
		slot += pool->step;
		if (slot >= pool->size)
			slot -= pool->size;
	}
	table = bpf_map_lookup_elem(&spares, &index);
	if (!table)
		return 0;
	slot = first;
	id = bpf_map_lookup_elem(table, &slot);
	return id && usable(*id, how & WALK_WHOLE, 0) ? *id : 0;
}

/* Fewer live flows for its weight wins, the first when equal. */
static __noinline __u32 lighter(__u32 first, __u32 second)
{
	__u32 index1 = first & ID_INDEX_MASK, index2 = second & ID_INDEX_MASK;
	struct backend *a = backend_of(first), *b = backend_of(second);
	__u32 *live1 = bpf_map_lookup_elem(&live, &index1);
	__u32 *live2 = bpf_map_lookup_elem(&live, &index2);

	if (!a || !b || !live1 || !live2)
		return a ? first : second;
	return (__u64)*live2 * (a->weight ?: 1) < (__u64)*live1 * (b->weight ?: 1) ? second : first;
}

static __always_inline __u32 pick(const struct packet *p, __u32 pool, __u32 how)
{
	__u32 first;

	if (p->modulo)
		how |= WALK_MODULO;
	first = walk(pool, p->draw, how);
	if (!p->two_draws)
		return first;
	return lighter(first, walk(pool, p->draw << 32, how));
}

static __always_inline void draw_hash(struct packet *p, const struct service *service)
{
	p->modulo = 0;
	p->two_draws = 0;
	p->draw = tuple_hash(&p->tuple, p->family, service->hash);
}

/* One draw a packet, whatever it is tried on. */
static __always_inline void make_draw(struct packet *p, const struct service *service)
{
	__u32 index = service->id & ID_INDEX_MASK;
	__u8 balance = service->balance;
	struct service_state *state;

	if (balance == BALANCE_HASH || (p->tuple.proto == IPPROTO_TCP && p->what != WHAT_SYN)) {
		draw_hash(p, service);
	} else if (balance == BALANCE_ROUND_ROBIN) {
		state = bpf_map_lookup_elem(&service_state, &index);
		p->draw = state ? __sync_fetch_and_add(&state->cursor, 1) : 0;
		p->modulo = 1;
		p->two_draws = 0;
	} else {
		p->draw = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
		p->modulo = 0;
		p->two_draws = balance == BALANCE_LEAST_CONNECTIONS;
	}
}

/* The backend id for p->draw: the first pool that has one, else the first pool whole. */
__attribute__((noinline)) __u32 choose(struct packet *p, __u32 retry)
{
	struct service *service = p ? service_of(p->service) : NULL;
	__u32 id;

	if (!service)
		return 0;
	retry &= WALK_RETRY;
	for (__u32 i = 0; i < POOLS_PER_SERVICE; i++) {
		if (i >= service->pool_count)
			break;
		if (service->short_pools & 1 << i)
			continue;
		id = pick(p, service->pools[i], retry);
		if (id)
			return id;
	}
	if (service->flags & SERVICE_FAIL_CLOSED || !service->pool_count)
		return 0;
	return pick(p, service->pools[0], retry | WALK_WHOLE);
}
