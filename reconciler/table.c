/* SPDX-License-Identifier: GPL-2.0-only */
/* Filling the slots of a table, fast. table.py says the same in plain Python;
 * the two agree slot by slot. Freestanding: no library, no allocation, integers
 * only, so that every node computes the same table.
 */
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

#define FREE 0xffffffffu

struct member {
	u64 credit;	/* turns saved up: one try costs the heaviest weight */
	u32 at;		/* the slot that it tries next */
	u32 skip;	/* from one try to the next; the size is prime, so all are tried */
	u32 weight;
	u32 room;	/* slots that it may still take */
};

static u32 heaviest(const struct member *members, u32 count)
{
	u32 most = 1;

	for (u32 i = 0; i < count; i++)
		if (members[i].room && members[i].weight > most)
			most = members[i].weight;
	return most;
}

static u32 try_next(struct member *m, u32 size)
{
	u32 slot = m->at;

	m->at += m->skip;
	if (m->at >= size)
		m->at -= size;
	return slot;
}

/* Members take turns, as often as they weigh. Insisting ones (maglev) try until
 * they find a free slot; others (consistent) try once, so what one member takes
 * depends little on the rest, and are held to their share by `room`.
 */
void fill(u32 *slots, u32 size, struct member *members, u32 count, u32 insist)
{
	u32 most = heaviest(members, count);
	u32 left = size;

	for (u32 i = 0; i < size; i++)
		slots[i] = FREE;
	while (left)
		for (u32 i = 0; i < count && left; i++) {
			struct member *m = &members[i];
			u32 slot;

			if (!m->room)
				continue;
			m->credit += m->weight;
			if (m->credit < most)
				continue;
			m->credit -= most;
			do {
				slot = try_next(m, size);
			} while (insist && slots[slot] != FREE);
			if (slots[slot] != FREE)
				continue;
			slots[slot] = i;
			left--;
			if (!--m->room)
				most = heaviest(members, count);
		}
}

/* Members try slots at even distances, and the walk past a backend that is down
 * goes even distances too: it would find one and the same neighbour for most of
 * them, who would get all the load. So each slot's content goes to the slot of
 * its inverse modulo the (prime) size, which leaves no even distances.
 */
void scatter(u32 *out, const u32 *slots, u32 *inverse, u32 size)
{
	inverse[0] = 0;
	inverse[1] = 1;
	for (u32 i = 2; i < size; i++)
		inverse[i] = size - (u64)(size / i) * inverse[size % i] % size;
	for (u32 i = 0; i < size; i++)
		out[i] = slots[inverse[i]];
}

static u32 noise(u32 x)
{
	x = (x ^ x >> 16) * 0x7feb352du;
	x = (x ^ x >> 15) * 0x846ca68bu;
	return x ^ x >> 16;
}

/* Slot after slot to whoever is furthest behind its share: weighted round-robin.
 * Noise below one round varies the order from round to round, for the same
 * reason as above. `behind` is scratch, one for each member, all zero.
 */
void deal(u32 *slots, u32 size, const u32 *weights, long long *behind, u32 count)
{
	long long total = 0;

	for (u32 i = 0; i < count; i++)
		total += (long long)weights[i] << 16;
	for (u32 s = 0; s < size; s++) {
		long long most = -(1ll << 62);
		u32 next = 0;

		for (u32 i = 0; i < count; i++) {
			u64 weight = (u64)weights[i] << 16; /* fine enough for noise */
			long long here;

			behind[i] += weight;
			here = behind[i] + (long long)(weight * noise(s * count + i) >> 32);
			if (here > most) {
				most = here;
				next = i;
			}
		}
		behind[next] -= total;
		slots[s] = next;
	}
}

/* Where the walk from each slot ends: the slot itself when its member is
 * usable, else what the walk from the next one finds. No one usable: unchanged.
 */
void walk(u32 *ends, const u32 *slots, u32 size, u32 step, const u8 *usable)
{
	u32 slot = 0, found = FREE;

	for (u32 k = 0; k < 2 * size; k++) {
		if (usable[slots[slot]])
			found = slots[slot];
		ends[slot] = found == FREE ? slots[slot] : found;
		slot = slot >= step ? slot - step : slot + size - step;
	}
}

/* Members' numbers become ids. */
void name(u32 *ids, const u32 *slots, u32 size, const u32 *id_of)
{
	for (u32 i = 0; i < size; i++)
		ids[i] = id_of[slots[i]];
}
