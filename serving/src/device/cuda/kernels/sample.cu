// Chooses tokens from logits, as device/sampler does: the largest logit, or a draw from what temperature, top_k and top_p leave.
//
// logits are rows of `ld` floats, of which the first `vocabulary` count, or lists with the token of each entry. A mask is
// ceil(vocabulary / 32) words; bit t % 32 of word t / 32 allows token t, and at least one is allowed. A chosen token goes to
// slots[slot], where the next pass finds it, and to result[index]. Ties go to the smaller id, and what is not a number is chosen
// only where nothing else is allowed. Vocabularies have at most 2^24 tokens.
//
// Launch: a block for each row, of a power of two of threads from 128 to ROW_THREADS_MAX; a warp for each list.
//
// A draw does not sort. A token's rank orders tokens by logit and then id, and no two are equal, so what top_k or top_p leaves is
// all from some rank on. That rank is found digit by digit from histograms of the digits (a radix select): of counts for top_k, of
// probability for top_p. Probabilities are integers, multiples of 2^-39 of the largest, so that sums are exact and come out the same
// in any order.
// Bound: memory, vocabulary * 4 bytes for each row; a draw reads its row 2 times, 3 to 6 times more for each of top_k and top_p, from
// the L2 cache.

constexpr int ROW_THREADS_MAX = 1024;
constexpr int WARPS_MAX = ROW_THREADS_MAX / WARP;

// A rank is 32 bits of the logit's order, then ID_BITS of the id's. 0 is below all.
constexpr int ID_BITS = 28;
constexpr int ID_LIMIT = 1 << 24;
constexpr int RANK_BITS = 32 + ID_BITS;
constexpr int DIGIT_BITS = 12;
constexpr int DIGITS = 1 << DIGIT_BITS;

__device__ __forceinline__ u64 rank_of(float logit, int id) {
    // Adding zero makes the two zeros one.
    unsigned bits = __float_as_uint(logit + 0.0f);
    unsigned order = bits >> 31 ? ~bits : bits | 0x80000000u;
    if (isnan(logit)) {
        order = 0;
    }
    return (u64)order << ID_BITS | (unsigned)(ID_LIMIT - id);
}

__device__ __forceinline__ int id_of(u64 rank) { return ID_LIMIT - (int)(rank & ((1u << ID_BITS) - 1)); }

__device__ __forceinline__ float logit_of(u64 rank) {
    unsigned order = rank >> ID_BITS;
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

__device__ __forceinline__ u64 larger(u64 a, u64 b) { return a > b ? a : b; }

// The largest rank of a warp, for all its lanes.
__device__ __forceinline__ u64 max_rank_of_warp(u64 rank) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        rank = larger(rank, __shfl_xor_sync(ALL_LANES, rank, distance));
    }
    return rank;
}

// The sum of `x` over this lane and those before it.
__device__ __forceinline__ u64 running_sum_of_warp(u64 x) {
    int lane = threadIdx.x % WARP;
    for (int distance = 1; distance < WARP; distance *= 2) {
        u64 before = __shfl_up_sync(ALL_LANES, x, distance);
        x += lane >= distance ? before : 0;
    }
    return x;
}

// Leaves in `of_warps` what each warp has, for all threads.
template <typename T>
__device__ __forceinline__ void share(T* of_warps, T of_warp) {
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        of_warps[threadIdx.x / WARP] = of_warp;
    }
    __syncthreads();
}

// The largest rank of a block, for all its threads.
__device__ __forceinline__ u64 max_rank_of_block(u64 rank) {
    __shared__ u64 of_warps[WARPS_MAX];
    share(of_warps, max_rank_of_warp(rank));
    rank = 0;
    for (int warp = 0; warp < blockDim.x / WARP; warp++) {
        rank = larger(rank, of_warps[warp]);
    }
    return rank;
}

struct Row {
    const float* logits;
    // Null where all are allowed.
    const unsigned* mask;
    int count;

    __device__ bool allows(int id) const { return !mask || mask[id / 32] >> id % 32 & 1; }
};

// Calls visit(id, logit) for the allowed tokens of a row, each in one thread of the block.
template <typename Visit>
__device__ __forceinline__ void for_each_allowed(const Row& row, Visit visit) {
    int quads = reinterpret_cast<u64>(row.logits) % 16 == 0 ? row.count / 4 : 0;
    const float4* by_four = reinterpret_cast<const float4*>(row.logits);
#pragma unroll 4
    for (int quad = threadIdx.x; quad < quads; quad += blockDim.x) {
        unsigned allowed = row.mask ? row.mask[quad / 8] >> quad % 8 * 4 & 15 : 15;
        if (allowed) {
            float4 four = by_four[quad];
            float logits[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (allowed >> i & 1) {
                    visit(4 * quad + i, logits[i]);
                }
            }
        }
    }
    for (int id = 4 * quads + threadIdx.x; id < row.count; id += blockDim.x) {
        if (row.allows(id)) {
            visit(id, row.logits[id]);
        }
    }
}

__device__ __forceinline__ u64 largest_of_row(const Row& row) {
    u64 best = 0;
    for_each_allowed(row, [&](int id, float logit) { best = larger(best, rank_of(logit, id)); });
    return max_rank_of_block(best);
}

// rows of (row of logits, slot, first word of the mask or -1, index in the result).
extern "C" __global__ void __launch_bounds__(ROW_THREADS_MAX) argmax_rows(
    const float* __restrict__ logits, int ld, const int4* __restrict__ rows, const unsigned* __restrict__ masks, int vocabulary,
    int* __restrict__ slots, int* __restrict__ result) {
    int4 at = rows[blockIdx.x];
    Row row{logits + (long long)at.x * ld, at.z < 0 ? nullptr : masks + at.z, vocabulary};
    int token = id_of(largest_of_row(row));
    if (threadIdx.x == 0) {
        slots[at.y] = token;
        result[at.w] = token;
    }
}

// lists of (first entry of logits and tokens, count of entries, slot, index in the result).
extern "C" __global__ void __launch_bounds__(WARP) argmax_lists(
    const float* __restrict__ logits, const int* __restrict__ tokens, const int4* __restrict__ lists, int* __restrict__ slots,
    int* __restrict__ result) {
    int4 list = lists[blockIdx.x];
    u64 best = 0;
    for (int i = list.x + threadIdx.x; i < list.x + list.y; i += WARP) {
        best = larger(best, rank_of(logits[i], tokens[i]));
    }
    int token = id_of(max_rank_of_warp(best));
    if (threadIdx.x == 0) {
        slots[list.z] = token;
        result[list.w] = token;
    }
}

// Sums of 64 bits in halves: shared memory adds 32 bits at a time, and only a sum that wraps touches the upper half for that.
struct Histogram {
    unsigned low[DIGITS], high[DIGITS];

    __device__ void clear() {
        for (int digit = threadIdx.x; digit < DIGITS; digit += blockDim.x) {
            low[digit] = high[digit] = 0;
        }
    }

    __device__ void add(int digit, u64 mass) {
        unsigned add_low = mass, before = atomicAdd(&low[digit], add_low);
        unsigned add_high = (unsigned)(mass >> 32) + (before + add_low < before);
        if (add_high) {
            atomicAdd(&high[digit], add_high);
        }
    }

    __device__ u64 at(int digit) const { return (u64)high[digit] << 32 | low[digit]; }
};

struct Digit {
    int digit;
    // What lies in larger digits, and in this one.
    u64 above, mass;
};

// The digit in which the sums from the largest digit down reach `need`, which is between 1 and the sum of all.
__device__ __forceinline__ Digit digit_that_reaches(const Histogram& histogram, u64 need) {
    __shared__ u64 of_warps[WARPS_MAX];
    __shared__ Digit found;
    int per_thread = DIGITS / blockDim.x, first = DIGITS - 1 - threadIdx.x * per_thread;
    u64 mine = 0;
    for (int i = 0; i < per_thread; i++) {
        mine += histogram.at(first - i);
    }
    u64 running = running_sum_of_warp(mine);
    share(of_warps, __shfl_sync(ALL_LANES, running, WARP - 1));
    u64 above = running - mine;
    for (int warp = 0; warp < threadIdx.x / WARP; warp++) {
        above += of_warps[warp];
    }
    if (above < need && need <= above + mine) {
        int digit = first;
        for (; above + histogram.at(digit) < need; digit--) {
            above += histogram.at(digit);
        }
        found = {digit, above, histogram.at(digit)};
    }
    __syncthreads();
    return found;
}

// The largest rank from which on the masses of allowed tokens sum up to `need` or more, looking at ranks from `least` on only.
// `need` must be between 1 and the sum of all. All threads of the block must call it.
template <typename Mass>
__device__ __forceinline__ u64 rank_that_reaches(const Row& row, u64 least, u64 need, Histogram& histogram, Mass mass) {
    u64 leading = 0;
    for (int shift = RANK_BITS - DIGIT_BITS;; shift -= DIGIT_BITS) {
        __syncthreads();
        histogram.clear();
        __syncthreads();
        for_each_allowed(row, [&](int id, float logit) {
            u64 rank = rank_of(logit, id);
            if (rank >= least && rank >> (shift + DIGIT_BITS) == leading) {
                histogram.add(rank >> shift & (DIGITS - 1), mass(logit));
            }
        });
        __syncthreads();
        Digit digit = digit_that_reaches(histogram, need);
        leading = leading << DIGIT_BITS | digit.digit;
        need -= digit.above;
        if (shift == 0 || digit.mass == need) {
            return larger(least, leading << shift);
        }
    }
}

// What a draw asks for, as the host lays it out.
struct Draw {
    float temperature, top_p;
    // 0 where all are kept.
    int top_k;
    // Its number within the request.
    unsigned draw;
    u64 seed;
    int row, slot;
    // First word of the mask, or -1.
    int mask;
    int result;
    int unused[2];
};
static_assert(sizeof(Draw) == 48, "the host writes 12 words");

// 53 random bits, leading in a word.
__device__ __forceinline__ u64 random_bits(u64 seed, unsigned draw) { return bits_of(seed, draw) >> 11 << 11; }

// Probabilities as integers.
struct Softmax {
    float max, temperature;

    __device__ u64 operator()(float logit) const {
        const float one = 549755813888.0f;  // 2^39, and 2^24 of them are less than 2^64.
        return isnan(logit) ? 0 : (u64)(expf((logit - max) / temperature) * one);
    }
};

// The row cut into a stretch of ascending ids for each warp.
struct Stretch {
    int begin, end;

    __device__ explicit Stretch(int count) {
        int warps = blockDim.x / WARP, len = (count + warps * WARP - 1) / (warps * WARP) * WARP;
        begin = min(count, (int)(threadIdx.x / WARP) * len);
        end = min(count, begin + len);
    }
};

// What token `id` weighs among those of rank `least` and above.
__device__ __forceinline__ u64 weight_of(const Row& row, int id, int end, u64 least, const Softmax& softmax) {
    if (id >= end || !row.allows(id)) {
        return 0;
    }
    float logit = row.logits[id];
    return rank_of(logit, id) >= least ? softmax(logit) : 0;
}

// Sums the weights of ranks from `least` on, and leaves in `of_warps` those of each warp's stretch. Returns the sum of all.
__device__ __forceinline__ u64 sum_weights(const Row& row, u64 least, const Softmax& softmax, u64* of_warps) {
    Stretch stretch(row.count);
    u64 sum = 0;
#pragma unroll 4
    for (int first = stretch.begin; first < stretch.end; first += WARP) {
        sum += weight_of(row, first + threadIdx.x % WARP, stretch.end, least, softmax);
    }
    share(of_warps, __shfl_sync(ALL_LANES, running_sum_of_warp(sum), WARP - 1));
    sum = 0;
    for (int warp = 0; warp < blockDim.x / WARP; warp++) {
        sum += of_warps[warp];
    }
    return sum;
}

// The first token at which the weights in ascending id sum up to more than `target`; known to one warp, -1 to the others.
__device__ __forceinline__ int token_beyond(
    const Row& row, u64 least, const Softmax& softmax, const u64* of_warps, u64 target) {
    u64 sum = 0;
    for (int warp = 0; warp < threadIdx.x / WARP; warp++) {
        sum += of_warps[warp];
    }
    if (target < sum || target >= sum + of_warps[threadIdx.x / WARP]) {
        return -1;
    }
    Stretch stretch(row.count);
    for (int first = stretch.begin; first < stretch.end; first += WARP) {
        u64 running = sum + running_sum_of_warp(weight_of(row, first + threadIdx.x % WARP, stretch.end, least, softmax));
        unsigned beyond = __ballot_sync(ALL_LANES, running > target);
        if (beyond) {
            return first + __ffs(beyond) - 1;
        }
        sum = __shfl_sync(ALL_LANES, running, WARP - 1);
    }
    return -1;
}

// The rank from which on tokens are kept, 0 for all.
__device__ __forceinline__ u64 least_kept(
    const Row& row, const Draw& draw, const Softmax& softmax, Histogram& histogram, u64* of_warps) {
    u64 least = 0;
    if (draw.top_k > 0) {
        int mine = 0;
        for_each_allowed(row, [&](int, float) { mine++; });
        share(of_warps, (u64)__reduce_add_sync(ALL_LANES, mine));
        u64 count = 0;
        for (int warp = 0; warp < blockDim.x / WARP; warp++) {
            count += of_warps[warp];
        }
        if (draw.top_k < count) {
            least = rank_that_reaches(row, least, draw.top_k, histogram, [](float) { return 1ull; });
        }
    }
    if (draw.top_p < 1) {
        u64 total = sum_weights(row, least, softmax, of_warps);
        u64 need = ceil((double)draw.top_p * total);
        least = rank_that_reaches(row, least, min(larger(need, 1), total), histogram, softmax);
    }
    return least;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS_MAX) sample_rows(
    const float* __restrict__ logits, int ld, const Draw* __restrict__ draws, const unsigned* __restrict__ masks, int vocabulary,
    int* __restrict__ slots, int* __restrict__ result) {
    __shared__ Histogram histogram;
    __shared__ u64 of_warps[WARPS_MAX];
    Draw draw = draws[blockIdx.x];
    Row row{logits + (long long)draw.row * ld, draw.mask < 0 ? nullptr : masks + draw.mask, vocabulary};
    u64 best = largest_of_row(row);
    Softmax softmax{logit_of(best), draw.temperature};
    if (draw.temperature == 0 || !isfinite(softmax.max)) {
        if (threadIdx.x == 0) {
            slots[draw.slot] = result[draw.result] = id_of(best);
        }
        return;
    }
    u64 least = least_kept(row, draw, softmax, histogram, of_warps);
    u64 total = sum_weights(row, least, softmax, of_warps);
    // The uniform number times the total, rounded down.
    int token = token_beyond(row, least, softmax, of_warps, __umul64hi(random_bits(draw.seed, draw.draw), total));
    if (token >= 0 && threadIdx.x % WARP == 0) {
        slots[draw.slot] = result[draw.result] = token;
    }
}

// The most probable tokens, and the logarithm of the sum of exponentials, over the whole vocabulary.
//
// rows of (row of logits, count of tokens <= TOP_MAX and <= vocabulary, first place in `ids` and `values`, index in the others).
// ids and values get the largest logits and their tokens, in descending order; log_sums[index] = log(sum of exp(logits)), without
// what is not a number; of_chosen[index] = the logit of token result[index].
constexpr int TOP_MAX = 1024;

extern "C" __global__ void __launch_bounds__(ROW_THREADS_MAX) top_rows(
    const float* __restrict__ logits, int ld, const int4* __restrict__ rows, int vocabulary, const int* __restrict__ result,
    int* __restrict__ ids, float* __restrict__ values, double* __restrict__ log_sums, float* __restrict__ of_chosen) {
    __shared__ Histogram histogram;
    __shared__ double sums[WARPS_MAX];
    __shared__ u64 top[TOP_MAX];
    __shared__ int found;
    int4 at = rows[blockIdx.x];
    Row row{logits + (long long)at.x * ld, nullptr, vocabulary};

    float max = logit_of(largest_of_row(row));
    double sum = 0;
    for_each_allowed(row, [&](int, float logit) { sum += isnan(logit) ? 0 : expf(logit - max); });
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, distance);
    }
    share(sums, sum);
    if (threadIdx.x == 0) {
        sum = 0;
        for (int warp = 0; warp < blockDim.x / WARP; warp++) {
            sum += sums[warp];
        }
        log_sums[at.w] = max + log(sum);
        of_chosen[at.w] = row.logits[result[at.w]];
        found = 0;
    }
    if (at.y == 0) {
        return;
    }
    u64 least = at.y < vocabulary ? rank_that_reaches(row, 0, at.y, histogram, [](float) { return 1ull; }) : 0;
    __syncthreads();
    for_each_allowed(row, [&](int id, float logit) {
        u64 rank = rank_of(logit, id);
        if (rank >= least) {
            top[atomicAdd(&found, 1)] = rank;
        }
    });
    __syncthreads();
    for (int i = threadIdx.x; i < at.y; i += blockDim.x) {
        int place = 0;
        for (int other = 0; other < at.y; other++) {
            place += top[other] > top[i];
        }
        ids[at.z + place] = id_of(top[i]);
        values[at.z + place] = row.logits[id_of(top[i])];
    }
}
