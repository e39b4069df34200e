// Kernels that take a row at a time: embeddings, norms with the residual stream, activations, and what becomes the input of a product.
//
// In: f32 rows. Out: f32 rows, and rows in the form of a product's input: bf16, or int8 codes with scales. One block of threads is one row,
// and nothing of a row depends on another. Deliberately not here: products and attention.

#define ROW_THREADS 256
// The depth that scales of input rows belong to; inputs are padded to it with zeros.
#define BLOCK 64

// The input of a product, `[rows][depth]` with a depth that is a multiple of BLOCK.
struct Input {
    u16* bf16;    // or null
    i8* codes;    // or null
    float* scales;  // [rows][depth / BLOCK]
    int* shifts;    // [rows][depth / BLOCK][2], of the halves
    u32 depth;
};

// What a sum of codes takes back from its products with bytes: `kernels/nested.cu`.
__device__ inline int shift_of(int sum, bool narrow) { return narrow ? (-241 * sum) >> 1 : -128 * sum; }

// Writes a row of `width` values, which lies in shared memory, into an input. All threads of the block take part.
__device__ inline void write_input(const Input& to, u32 row, const float* values, u32 width, bool narrow) {
    u32 thread = threadIdx.x;
    if (to.bf16) {
        for (u32 at = thread; at < to.depth; at += ROW_THREADS) {
            to.bf16[static_cast<u64>(row) * to.depth + at] = at < width ? bf16_of(values[at]) : 0;
        }
    }
    if (to.codes) {
        // A warp takes a block of the depth, a lane two values of it: lanes below 16 have the first half.
        u32 blocks = to.depth / BLOCK, lane = thread % 32;
        for (u32 block = thread / 32; block < blocks; block += ROW_THREADS / 32) {
            u32 at = block * BLOCK + 2 * lane;
            float pair[2] = {at < width ? values[at] : 0.0f, at + 1 < width ? values[at + 1] : 0.0f};
            // Sizes are ordered as their bits are.
            u32 most = as_bits(pair[0]) & 0x7fffffff, other = as_bits(pair[1]) & 0x7fffffff;
            most = other > most ? other : most;
            for (int step = 16; step > 0; step /= 2) {
                other = __shfl_xor_sync(0xffffffff, most, step);
                most = other > most ? other : most;
            }
            float largest = as_float(most);
            float inverse = largest > 1e-30f ? quotient(127.0f, largest) : 0.0f;
            u64 base = static_cast<u64>(row) * to.depth + at;
            int sum = 0;
            for (int k = 0; k < 2; k++) {
                // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the low bits.
                i8 code = static_cast<i8>(as_bits(pair[k] * inverse + 12582912.0f));
                to.codes[base + k] = code;
                sum += code;
            }
            for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
            u64 place = static_cast<u64>(row) * blocks + block;
            if (lane == 0) to.scales[place] = quotient(largest, 127.0f);
            if (lane % 16 == 0) to.shifts[2 * place + lane / 16] = shift_of(sum, narrow);
        }
    }
}

// The factor of a root mean square norm of `values[0..width]`: squares go to lane i mod 16, in order, then lanes are folded. `room` is
// LANES + 1 floats. Ends with all threads at one point.
__device__ inline float norm_factor(const float* values, u32 width, float eps, float* room) {
    if (threadIdx.x < LANES) {
        float sum = 0.0f;
        for (u32 at = threadIdx.x; at < width; at += LANES) sum += values[at] * values[at];
        room[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        float lanes[LANES];
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = room[lane];
        room[LANES] = quotient(1.0f, root(quotient(fold(lanes), static_cast<float>(width)) + eps));
    }
    __syncthreads();
    return room[LANES];
}

struct NormParams {
    float* stream;            // [rows][width]
    const float* change;      // [rows][width], or null: what the half of a layer before this one adds to the stream
    const float* change_norm;  // [width], or null: what norms the change first
    const float* weight;      // [width]
    const u32* rows;          // which rows of stream and change the rows of the input are, or null: they are the same
    const u8* narrow;         // of each row of the stream, whether it is computed at 4 bits
    Input input;
    u32 width;
    float eps;
    u32 keep;  // whether the stream is written back
    float* normed;  // [rows][width] in f32 as well, or null
};

// Adds the change to the stream, and makes the stream, normed, the next input.
KERNEL(add_and_norm, ROW_THREADS, NormParams) {
    SHARED(float, values);
    float* room = values + p.width;
    u32 thread = threadIdx.x, row = blockIdx.x;
    u32 from = p.rows ? p.rows[row] : row;
    float* stream = p.stream + static_cast<u64>(from) * p.width;
    if (p.change) {
        const float* change = p.change + static_cast<u64>(from) * p.width;
        float factor = 1.0f;
        if (p.change_norm) {
            for (u32 at = thread; at < p.width; at += ROW_THREADS) values[at] = change[at];
            __syncthreads();
            factor = norm_factor(values, p.width, p.eps, room);
        }
        for (u32 at = thread; at < p.width; at += ROW_THREADS) {
            float added = p.change_norm ? change[at] * factor * p.change_norm[at] : change[at];
            values[at] = stream[at] + added;
            if (p.keep) stream[at] = values[at];
        }
    } else {
        for (u32 at = thread; at < p.width; at += ROW_THREADS) values[at] = stream[at];
    }
    __syncthreads();
    float factor = norm_factor(values, p.width, p.eps, room);
    for (u32 at = thread; at < p.width; at += ROW_THREADS) {
        values[at] = values[at] * factor * p.weight[at];
        if (p.normed) p.normed[static_cast<u64>(row) * p.width + at] = values[at];
    }
    __syncthreads();
    write_input(p.input, row, values, p.width, p.narrow[from]);
}

struct GateParams {
    const float* gate_up;  // [rows][gate, up]
    const u32* rows;       // which rows, or null: all
    const u8* narrow;
    Input input;
    u32 width;
    u32 activation;  // 0 SiLU, 1 GELU by tanh, 2 clamped SwiGLU
    float alpha;
    float limit;
};

// `activation(gate, up)` as the next input.
KERNEL(gate, ROW_THREADS, GateParams) {
    SHARED(float, values);
    u32 thread = threadIdx.x, row = p.rows ? p.rows[blockIdx.x] : blockIdx.x;
    const float* gates = p.gate_up + static_cast<u64>(row) * 2 * p.width;
    const float* ups = gates + p.width;
    for (u32 at = thread; at < p.width; at += ROW_THREADS) {
        float g = gates[at], u = ups[at], made;
        if (p.activation == 0) {
            made = quotient(g, 1.0f + exp_of(-g)) * u;
        } else if (p.activation == 1) {
            made = quotient(g, 1.0f + exp_of(-1.595769f * (g + 0.044715f * (g * g * g)))) * u;
        } else {
            g = g > p.limit ? p.limit : g;
            u = u > p.limit ? p.limit : u;
            u = u < -p.limit ? -p.limit : u;
            made = quotient(g, 1.0f + exp_of(-p.alpha * g)) * (u + 1.0f);
        }
        values[at] = made;
    }
    __syncthreads();
    write_input(p.input, row, values, p.width, p.narrow[row]);
}

struct TakeParams {
    const float* values;  // [rows][width]
    const u32* rows;      // which rows, or null: all
    const u8* narrow;
    Input input;
    u32 width;
};

// Rows as they are as the next input.
KERNEL(take, ROW_THREADS, TakeParams) {
    SHARED(float, values);
    u32 row = blockIdx.x;
    u32 from = p.rows ? p.rows[row] : row;
    for (u32 at = threadIdx.x; at < p.width; at += ROW_THREADS) values[at] = p.values[static_cast<u64>(from) * p.width + at];
    __syncthreads();
    write_input(p.input, row, values, p.width, p.narrow[from]);
}

struct CapParams {
    float* values;
    u64 count;
    float cap;
};

// Holds values below a cap.
KERNEL(soft_cap, ROW_THREADS, CapParams) {
    u64 at = static_cast<u64>(blockIdx.x) * ROW_THREADS + threadIdx.x;
    if (at < p.count) p.values[at] = capped(p.values[at], p.cap);
}
