// Keys and values in blocks of pages: where they lie, and how rows get there.
//
// In: the product of a layer's queries, keys and values. Out: queries normed and turned in their place, keys and values in the pool.
//
// The layout is the CPU device's, whose name it also has. A block of a group is `[layer][head][keys, values]`, a head is padded to a multiple
// of 16 elements and cut into pages of 16 positions. A page of keys is `[element / 2][position][2]`, one of values
// `[position / 2][element][2]`. That is also what the matrix instructions want: a 32-bit word is two neighbours of the axis that is summed.

#define PAGE 16

struct Pool {
    u16* elements;
    u32 block_stride;  // elements of a block
    u32 block_tokens;
    u32 layer;
    u32 kv_heads;
    u32 head_dim;
    u32 width;  // head_dim, padded
};

// Where the keys of a head begin in a block; its values follow them.
__device__ inline u64 keys_at(const Pool& pool, u32 block, u32 head) {
    u64 part = static_cast<u64>(pool.width) * pool.block_tokens;
    return static_cast<u64>(block) * pool.block_stride + (static_cast<u64>(pool.layer) * pool.kv_heads + head) * 2 * part;
}
__device__ inline u32 key_at(const Pool& pool, u32 slot, u32 dim) {
    return slot / PAGE * PAGE * pool.width + dim / 2 * 2 * PAGE + slot % PAGE * 2 + dim % 2;
}
__device__ inline u32 value_at(const Pool& pool, u32 slot, u32 dim) {
    return slot / 2 * 2 * pool.width + dim * 2 + slot % 2;
}

struct TurnParams {
    float* qkv;  // [rows][q, k, v]
    const u32* positions;
    const u32* blocks;       // of each row in this layer's group, the block that it is written to
    const float* q_norm;  // [head_dim], or null
    const float* k_norm;
    const float* turns;  // [position][cos of each pair, sin of each pair], or null: nothing is turned
    Pool pool;
    u32 heads;
    u32 pairs;
    float eps;
};

#define TURN_THREADS 128

// Norms and turns one query or key head of one row; keys and their values go into the pool.
KERNEL(turn_and_write, TURN_THREADS, TurnParams) {
    SHARED(float, head);
    float* room = head + p.pool.head_dim;
    u32 thread = threadIdx.x, row = blockIdx.x, at = blockIdx.y, dim = p.pool.head_dim;
    u32 position = p.positions[row];
    float* values = p.qkv + (static_cast<u64>(row) * (p.heads + 2 * p.pool.kv_heads) + at) * dim;
    bool is_key = at >= p.heads;
    const float* norm = is_key ? p.k_norm : p.q_norm;
    for (u32 i = thread; i < dim; i += TURN_THREADS) head[i] = values[i];
    __syncthreads();
    if (norm) {
        float factor = norm_factor(head, dim, p.eps, room);
        for (u32 i = thread; i < dim; i += TURN_THREADS) head[i] = head[i] * factor * norm[i];
        __syncthreads();
    }
    if (p.turns) {
        const float* turns = p.turns + static_cast<u64>(position) * p.pairs * 2;
        for (u32 i = thread; i < p.pairs; i += TURN_THREADS) {
            float a = head[i], b = head[i + p.pairs], c = turns[i], s = turns[i + p.pairs];
            head[i] = a * c - b * s;
            head[i + p.pairs] = b * c + a * s;
        }
        __syncthreads();
    }
    if (!is_key) {
        for (u32 i = thread; i < dim; i += TURN_THREADS) values[i] = head[i];
        return;
    }
    u32 kv_head = at - p.heads, slot = position % p.pool.block_tokens;
    u16* keys = p.pool.elements + keys_at(p.pool, p.blocks[row], kv_head);
    u16* stored = keys + static_cast<u64>(p.pool.width) * p.pool.block_tokens;
    const float* own = values + static_cast<u64>(p.pool.kv_heads) * dim;
    for (u32 i = thread; i < dim; i += TURN_THREADS) {
        keys[key_at(p.pool, slot, i)] = bf16_of(head[i]);
        stored[value_at(p.pool, slot, i)] = bf16_of(own[i]);
    }
}
