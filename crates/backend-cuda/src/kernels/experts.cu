// A mixture of experts: what its router says of each row, and the sum of what experts make. An expert itself is a gated feed-forward like others.
//
// In: normed rows in f32. Out: which experts a row goes to with which shares, in the CPU device's order; sums of shares times outputs. Deliberately not here:
// which launch works on which rows (`forward.rs`).

struct RouterParams {
    const float* values;  // [rows][width]
    const float* router;  // [experts][width]
    const float* bias;    // [experts], or null
    float* logits;        // [rows][experts]
    u32 rows;
    u32 experts;
    u32 width;
};

#define ROUTER_SEGMENT 256

// The router's logits, in f32 whatever the other matrices are: a small change of what it gives is another choice. Segments of the depth are summed
// from zero in rising order and added in order, multiplications and additions each rounded.
KERNEL(router, ROW_THREADS, RouterParams) {
    u64 at = static_cast<u64>(blockIdx.x) * ROW_THREADS + threadIdx.x;
    if (at >= static_cast<u64>(p.rows) * p.experts) return;
    const float* x = p.values + at / p.experts * p.width;
    const float* w = p.router + at % p.experts * p.width;
    float total = 0.0f;
    for (u32 first = 0; first < p.width; first += ROUTER_SEGMENT) {
        u32 end = first + ROUTER_SEGMENT < p.width ? first + ROUTER_SEGMENT : p.width;
        float sum = 0.0f;
        for (u32 k = first; k < end; k++) sum += x[k] * w[k];
        total += sum;
    }
    p.logits[at] = p.bias ? total + p.bias[at % p.experts] : total;
}

struct RouteParams {
    const float* logits;  // [rows][experts]
    u32* chosen;          // [rows][count], by falling logit, of equal ones the first
    float* shares;        // [rows][count], the softmax over their logits
    u32 rows;
    u32 experts;
    u32 count;
};

// A whole number that is ordered as numbers are, zeros of both signs apart.
__device__ inline int ordered(float x) {
    int bits = static_cast<int>(as_bits(x));
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}

// Chooses the experts of each row: one thread is one row.
KERNEL(route, ROW_THREADS, RouteParams) {
    u32 row = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (row >= p.rows) return;
    const float* logits = p.logits + static_cast<u64>(row) * p.experts;
    u32* chosen = p.chosen + static_cast<u64>(row) * p.count;
    float* shares = p.shares + static_cast<u64>(row) * p.count;
    float most = 0.0f, total = 0.0f;
    for (u32 place = 0; place < p.count; place++) {
        u32 best = p.experts;
        for (u32 expert = 0; expert < p.experts; expert++) {
            bool is_free = true;
            for (u32 before = 0; before < place; before++) is_free = is_free && chosen[before] != expert;
            if (is_free && (best == p.experts || ordered(logits[expert]) > ordered(logits[best]))) best = expert;
        }
        chosen[place] = best;
        if (place == 0) most = logits[best];
        shares[place] = exp_of(logits[best] - most);
        total += shares[place];
    }
    for (u32 place = 0; place < p.count; place++) shares[place] = quotient(shares[place], total);
}

struct ShareParams {
    const float* made;  // [rows of the step][width]
    const u32* rows;    // the rows of one expert
    const float* shares;  // of each of them
    float* sum;         // [rows of the step][width]
    u32 width;
};

// Adds what one expert made of its rows, times their shares.
KERNEL(add_shares, ROW_THREADS, ShareParams) {
    u64 row = p.rows[blockIdx.x];
    float share = p.shares[blockIdx.x];
    for (u32 at = threadIdx.x; at < p.width; at += ROW_THREADS) {
        p.sum[row * p.width + at] += share * p.made[row * p.width + at];
    }
}
