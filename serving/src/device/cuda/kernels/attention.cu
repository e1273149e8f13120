// Paged causal attention on tensor cores: out = softmax(scale * q K^T) V for each token and query head, over a list of work items.
//
// A work item is a run of query tokens, a range of keys and one KV head. The tokens' query heads of that KV head (`group` of them,
// token by token) are the rows of a matrix product with the keys, so that a key is read once for a whole group. A query at
// position p sees the keys of the item at positions <= p, and > p - window where there is a window; an item without a position
// shows all its keys to all its queries, which is how a prefix that many rows share is read once for all of them. Keys outside
// an item's range are never read into a result, whatever their page holds.
//
// qkv [n, (heads + 2 * kv_heads) * D] with turned queries, pool as in `pool_row`, out [n, heads * D]; D is 64, 96 or 128 and
// heads / kv_heads at most 16. A query whose keys lie in several items gets a partial result from each, in slots of
// partial_values [slots, heads, D] (each already divided by its own sum) and partial_sums [slots, heads] (logarithms to base 2
// of the sums of exponentials); `merge_partials` puts them together.
//
// Launch: grid items * kv_heads, the items with most work first: the hardware hands out blocks in this order, which balances
// them. Blocks of 4 warps. Two kernels, each for items of its own, since one would have the registers of both:
//  - `attend_tile`: up to 128 rows. FlashAttention-2 (Dao 2023): each warp has 32 rows, all warps walk over the same tiles of 64
//    keys, the next of which is copied while one is worked on; scores and weights stay in registers.
//    768 * D bytes of dynamic shared memory.
//  - `attend_few`: up to 16 rows, such as a token that decodes. Each warp walks over every fourth page with a ring of copies of
//    its own, so that no warp waits for another; at the end the block merges its four results.
//    256 * D * STAGES bytes of dynamic shared memory.
// A query's operations and their order depend on its item's range of keys and on which kernel has it, not on its company.
//
// Reference: device/cpu, attention. Bound: tensor cores with many rows, 4 * D FLOPs for each row and key; bandwidth with few,
// 2 * D * sizeof(act) bytes for each item and key.

#ifndef ACT_F32

constexpr int ATTENTION_WARPS = 4;
constexpr int ATTENTION_THREADS = ATTENTION_WARPS * WARP;
// The most query rows of an item.
constexpr int ATTENTION_ROWS = 128;
constexpr int TILE_KEYS = 64;
// Query rows of one product of the tensor cores, m16n8k16, and how many products' rows a warp has in a tile.
constexpr int M = 16;
constexpr int R = ATTENTION_ROWS / ATTENTION_WARPS / M;
// Copies of pages that a warp of `attend_few` has room for.
constexpr int STAGES = 2;

// What the host plans; see attention.rs.
struct WorkItem {
    int query;      // first query token
    int queries;    // number of query tokens
    int table;      // the row's first entry in block_tables
    int first_key;  // a multiple of PAGE_TOKENS
    int end_key;    // one after the last key
    int position;   // position of the first query; -1: every query sees every key of the item
    int partial;    // slot of the first query's partial result; -1: the result is whole
    int unused;
};

// What is the same for all items of a launch.
struct Launch {
    const act* qkv;
    const act* pool;
    const int* block_tables;
    act* out;
    float* partial_values;
    float* partial_sums;
    int heads, kv_heads, group;
    int layers, layer;
    float scale;  // of scores, times log2(e)
    int window;   // INT_MAX: none
};

__device__ __forceinline__ unsigned shared_address(const void* at) { return (unsigned)__cvta_generic_to_shared(at); }

// Copies 16 bytes to shared memory in the background; zeros where not `valid`, and then nothing is read.
__device__ __forceinline__ void copy_async(unsigned to, const act* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of the thread's latest groups of copies are under way.
template <int N>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Reads four 8x8 matrices, whose rows of 16 bytes lie at the addresses of lanes 0-7, 8-15, 16-23 and 24-31.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at));
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at));
}

// sum[16, 8] += a[16, 16] * b[16, 8].
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned pack_pair(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The same value, of which the compiler knows nothing: what depends on it is computed where it stands, not kept in registers from
// before the loop, where they are short.
template <typename T>
__device__ __forceinline__ T recomputed(T x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Rows of D activations in shared memory. The 16-byte chunks of a row are permuted by its number, so that reading one column of
// eight neighbouring rows meets eight different groups of banks.
template <int D>
struct Rows {
    static constexpr int CHUNKS = D / 8;
    static constexpr int BYTES = D * 2;

    // What is xored to the chunk numbers of a row. Rows of 96 are a multiple of half of the banks, and have groups of 4 chunks.
    static __device__ __forceinline__ int permutation(int row) { return D % 64 == 0 ? row & 7 : row >> 1 & 3; }

    static __device__ __forceinline__ unsigned offset(int row, int chunk) {
        return row * BYTES + (chunk ^ permutation(row)) * 16;
    }
};

// The page table of an item, 32 entries at a time, one in each lane.
struct PageTable {
    const int* entries;
    int last, first, held;

    __device__ __forceinline__ PageTable(const int* entries, int first, int last) : entries(entries), last(last) { hold(first); }

    __device__ __forceinline__ void hold(int index) {
        first = index;
        held = entries[min(index + (int)threadIdx.x % WARP, last)];
    }

    // The page at an index that is the same in all lanes and never falls. Past the end it is the last page.
    __device__ __forceinline__ int at(int index) {
        if (index - first >= WARP) {
            hold(index);
        }
        return __shfl_sync(ALL_LANES, held, index - first);
    }
};

// Division of row numbers below ATTENTION_ROWS by the group size, by multiplication.
struct Group {
    int size;
    unsigned inverse;

    __device__ __forceinline__ Group(int size) : size(size), inverse((65536 + size - 1) / size) {}
    __device__ __forceinline__ int token(int row) const { return row * inverse >> 16; }
};

// The KV heads' pages of one layer.
struct Pages {
    const act* keys;  // of page 0
    int page_size, to_values;

    __device__ __forceinline__ Pages(const Launch& of, int kv_head, int head_dim)
        : keys(of.pool + pool_row(0, of.layers, of.layer, 0, of.kv_heads, kv_head, 0, head_dim)),
          page_size((int)pool_row(1, of.layers, 0, 0, of.kv_heads, 0, 0, head_dim)),
          to_values(of.kv_heads * PAGE_TOKENS * head_dim) {}

    __device__ __forceinline__ const act* at(int page) const { return keys + (long long)page * page_size; }
};

// The running softmax of the row pair that a thread shares with the other three of its quad.
struct Softmax {
    float maximum[2], sum[2];

    // Takes in scores of N * 8 further keys: turns them to weights, and gives the factor that takes values to the new maximum.
    template <int N>
    __device__ __forceinline__ void add(float (&scores)[N][4], float (&factor)[2], float scale) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = maximum[half];
#pragma unroll
            for (int n = 0; n < N; n++) {
                largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            }
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
            // A row that has seen no key yet has no maximum, and any base gives it weights of zero.
            float base = largest == -infinity() ? 0 : largest * scale;
            factor[half] = exp2_fast(maximum[half] * scale - base);
            maximum[half] = largest;
            float total = 0;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    scores[n][i] = exp2_fast(scores[n][i] * scale - base);
                    total += scores[n][i];
                }
            }
            sum[half] = sum[half] * factor[half] + total;
        }
    }

    // Adds up the sums of the quad.
    __device__ __forceinline__ void close() {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] += __shfl_xor_sync(ALL_LANES, sum[half], 1);
            sum[half] += __shfl_xor_sync(ALL_LANES, sum[half], 2);
        }
    }
};

// Takes the running values to a new maximum.
template <int V>
__device__ __forceinline__ void rescale(float (&values)[V][4], const float (&factor)[2]) {
    // Most maxima stay once some keys have been seen.
    if (__any_sync(ALL_LANES, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            values[v][0] *= factor[0], values[v][1] *= factor[0];
            values[v][2] *= factor[1], values[v][3] *= factor[1];
        }
    }
}

// Which keys a query row sees.
struct Sight {
    int from, end;

    __device__ __forceinline__ bool sees(int key) const { return key >= from && key < end; }
};

__device__ __forceinline__ Sight sight_of(const WorkItem& item, int window, int token) {
    int position = item.position < 0 ? item.end_key - 1 : item.position + token;
    return {position - window + 1, min(position + 1, item.end_key)};
}

// Hides keys that are not seen. Scores of n-tile `n` are those of the keys first + 8 * n + 2 * (lane % 4) + (0, 1).
template <int N>
__device__ __forceinline__ void hide(float (&scores)[N][4], int first, Sight upper, Sight lower) {
    int key = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (!(i < 2 ? upper : lower).sees(key + 8 * n + i % 2)) {
                scores[n][i] = -infinity();
            }
        }
    }
}

// Writes the results of a warp's 16 * N rows. Whole ones go through `staged`, [16 * N] rows that the warp alone uses, so that rows
// are written in 16-byte chunks.
template <int D, int N>
__device__ __forceinline__ void write_rows(const WorkItem& item, const Launch& pass, int kv_head, const Group& group,
                                           Softmax (&softmax)[N], const float (&values)[N][D / 8][4], unsigned char* staged) {
    using Rows = Rows<D>;
    const int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * M * N, rows = item.queries * group.size;
    __syncwarp();
#pragma unroll
    for (int r = 0; r < N; r++) {
        softmax[r].close();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int of_warp = r * M + half * 8 + lane / 4, row = first + of_warp;
            const float sum = softmax[r].sum[half], inverse = sum > 0 ? 1 / sum : 0;
            const int token = group.token(row), head = kv_head * group.size + row - token * group.size;
            const long long slot = (long long)(item.partial + token) * pass.heads + head;
            if (item.partial >= 0 && row < rows && lane % 4 == 0) {
                pass.partial_sums[slot] = softmax[r].maximum[half] * pass.scale + __log2f(sum);
            }
#pragma unroll
            for (int v = 0; v < D / 8; v++) {
                const float x = values[r][v][2 * half] * inverse, y = values[r][v][2 * half + 1] * inverse;
                if (item.partial < 0) {
                    *reinterpret_cast<unsigned*>(staged + Rows::offset(of_warp, v) + lane % 4 * 4) = pack_pair(x, y);
                } else if (row < rows) {
                    *reinterpret_cast<float2*>(pass.partial_values + slot * D + v * 8 + lane % 4 * 2) = make_float2(x, y);
                }
            }
        }
    }
    if (item.partial >= 0) {
        return;
    }
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < M * N * Rows::CHUNKS / WARP; i++) {
        int chunk = i * WARP + lane, of_warp = chunk / Rows::CHUNKS, row = first + of_warp;
        if (row < rows) {
            int token = group.token(row), head = kv_head * group.size + row - token * group.size;
            long long to = ((long long)(item.query + token) * pass.heads + head) * D + chunk % Rows::CHUNKS * 8;
            *reinterpret_cast<uint4*>(pass.out + to) =
                *reinterpret_cast<const uint4*>(staged + Rows::offset(of_warp, chunk % Rows::CHUNKS));
        }
    }
}

// Up to ATTENTION_ROWS rows.
template <int D>
__device__ __forceinline__ void attend_tile(const WorkItem& item, const Launch& pass, int kv_head, unsigned char* shared) {
    using Rows = Rows<D>;
    constexpr int PAGE_CHUNKS = PAGE_TOKENS * Rows::CHUNKS;
    // Queries that fit are kept in registers.
    constexpr bool HELD = R * D <= 128;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Group group(pass.group);
    const int rows = item.queries * group.size;
    const unsigned queries = shared_address(shared) + warp * M * R * Rows::BYTES;
    const unsigned tiles = shared_address(shared) + ATTENTION_ROWS * Rows::BYTES;
    const Pages pages(pass, kv_head, D);
    PageTable table(pass.block_tables + item.table, item.first_key / PAGE_TOKENS, (item.end_key - 1) / PAGE_TOKENS);

    // Each warp copies its own query rows; rows past the last are zero.
#pragma unroll
    for (int i = 0; i < M * R * Rows::CHUNKS / WARP; i++) {
        int chunk = i * WARP + lane, of_warp = chunk / Rows::CHUNKS, row = warp * M * R + of_warp;
        int token = group.token(row), head = kv_head * group.size + row - token * group.size;
        long long from = (long long)(item.query + token) * (pass.heads + 2 * pass.kv_heads) + head;
        bool valid = row < rows;
        copy_async(queries + Rows::offset(of_warp, chunk % Rows::CHUNKS),
                   pass.qkv + (valid ? from * D + chunk % Rows::CHUNKS * 8 : 0), valid);
    }
    // Copies the keys and values of 64 keys.
    auto copy_tile = [&](int first, int stage) {
        unsigned to = tiles + stage * 2 * TILE_KEYS * Rows::BYTES;
// Not all at once: addresses under way would take the registers of the whole loop.
#pragma unroll 2
        for (int i = 0; i < TILE_KEYS * Rows::CHUNKS / ATTENTION_THREADS; i++) {
            int chunk = i * ATTENTION_THREADS + threadIdx.x, key = chunk / Rows::CHUNKS;
            int page = table.at(first / PAGE_TOKENS + chunk / PAGE_CHUNKS);
            const act* from = pages.at(page) + chunk % PAGE_CHUNKS * 8;
            unsigned at = to + Rows::offset(key, chunk % Rows::CHUNKS);
            bool valid = first + key < item.end_key;
            copy_async(at, from, valid);
            copy_async(at + TILE_KEYS * Rows::BYTES, from + pages.to_values, valid);
        }
    };
    copy_tile(item.first_key, 0);
    end_copy_group();

    Softmax softmax[R];
    float values[R][D / 8][4];
#pragma unroll
    for (int r = 0; r < R; r++) {
        softmax[r] = {{-infinity(), -infinity()}, {0, 0}};
#pragma unroll
        for (int v = 0; v < D / 8; v++) {
            values[r][v][0] = values[r][v][1] = values[r][v][2] = values[r][v][3] = 0;
        }
    }
    // What the first and the last row of the warp see; a warp without rows sees nothing.
    const Sight lowest = sight_of(item, pass.window, group.token(warp * R * M));
    Sight highest = sight_of(item, pass.window, min(group.token(warp * R * M + R * M - 1), item.queries - 1));
    highest.end = warp * R * M < rows ? highest.end : 0;

    // Where a lane's matrix rows begin, for products with queries, keys and values; the chunk is xored in.
    const int permutation = Rows::permutation(lane % 8);
    const unsigned query_row = queries + (lane % 16) * Rows::BYTES, query_chunk = (lane / 16 ^ permutation) * 16;
    const unsigned key_row = tiles + (lane / 16 * 8 + lane % 8) * Rows::BYTES, key_chunk = (lane / 8 % 2 ^ permutation) * 16;
    const unsigned value_row = tiles + (TILE_KEYS + lane % 16) * Rows::BYTES;
    unsigned held[HELD ? R : 1][HELD ? D / 16 : 1][4];

    int stage = 0;
    for (int first = item.first_key; first < item.end_key; first += TILE_KEYS, stage ^= 1) {
        wait_for_copies<0>();
        // The tile is there for all warps, and none reads the other stage any more.
        __syncthreads();
        if constexpr (HELD) {
            if (first == item.first_key) {
#pragma unroll
                for (int r = 0; r < R; r++) {
#pragma unroll
                    for (int k = 0; k < D / 16; k++) {
                        load_matrices(held[r][k], query_row + r * M * Rows::BYTES + (query_chunk ^ k * 32));
                    }
                }
            }
        }
        if (first + TILE_KEYS < item.end_key) {
            copy_tile(first + TILE_KEYS, stage ^ 1);
        }
        end_copy_group();
        if (first >= highest.end || first + TILE_KEYS <= lowest.from) {
            continue;
        }

        const unsigned at = stage * 2 * TILE_KEYS * Rows::BYTES;
        const unsigned of_query = recomputed(query_chunk), of_key = recomputed(key_chunk), of_value = of_query;
        float scores[R][TILE_KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            unsigned q[R][4];
#pragma unroll
            for (int r = 0; r < R; r++) {
                if constexpr (HELD) {
                    q[r][0] = held[r][k][0], q[r][1] = held[r][k][1], q[r][2] = held[r][k][2], q[r][3] = held[r][k][3];
                } else {
                    load_matrices(q[r], query_row + r * M * Rows::BYTES + (of_query ^ k * 32));
                }
            }
#pragma unroll
            for (int n = 0; n < TILE_KEYS / 16; n++) {
                unsigned keys[4];
                load_matrices(keys, key_row + at + n * 16 * Rows::BYTES + (of_key ^ k * 32));
#pragma unroll
                for (int r = 0; r < R; r++) {
                    multiply_add(scores[r][2 * n], q[r], keys[0], keys[1]);
                    multiply_add(scores[r][2 * n + 1], q[r], keys[2], keys[3]);
                }
            }
        }
        if (first + TILE_KEYS > lowest.end || first < highest.from) {
            const int row = recomputed(warp * R * M + lane / 4);
#pragma unroll
            for (int r = 0; r < R; r++) {
                const Sight upper = sight_of(item, pass.window, group.token(row + r * M));
                hide(scores[r], first, upper, sight_of(item, pass.window, group.token(row + r * M + 8)));
            }
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            float factor[2];
            softmax[r].add(scores[r], factor, pass.scale);
            rescale(values[r], factor);
        }
#pragma unroll
        for (int k = 0; k < TILE_KEYS / 16; k++) {
            unsigned weights[R][4];
#pragma unroll
            for (int r = 0; r < R; r++) {
                weights[r][0] = pack_pair(scores[r][2 * k][0], scores[r][2 * k][1]);
                weights[r][1] = pack_pair(scores[r][2 * k][2], scores[r][2 * k][3]);
                weights[r][2] = pack_pair(scores[r][2 * k + 1][0], scores[r][2 * k + 1][1]);
                weights[r][3] = pack_pair(scores[r][2 * k + 1][2], scores[r][2 * k + 1][3]);
            }
#pragma unroll
            for (int v = 0; v < D / 16; v++) {
                unsigned of_keys[4];
                load_matrices_transposed(of_keys, value_row + at + k * 16 * Rows::BYTES + (of_value ^ v * 32));
#pragma unroll
                for (int r = 0; r < R; r++) {
                    multiply_add(values[r][2 * v], weights[r], of_keys[0], of_keys[1]);
                    multiply_add(values[r][2 * v + 1], weights[r], of_keys[2], of_keys[3]);
                }
            }
        }
    }

    // The result takes the place of the warp's queries.
    write_rows<D, R>(item, pass, kv_head, group, softmax, values, shared + warp * M * R * Rows::BYTES);
}

// Up to 16 rows.
template <int D>
__device__ __forceinline__ void attend_few(const WorkItem& item, const Launch& pass, int kv_head, unsigned char* shared) {
    using Rows = Rows<D>;
    constexpr int STAGE_BYTES = 2 * PAGE_TOKENS * Rows::BYTES;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Group group(pass.group);
    const int rows = item.queries * group.size;
    const unsigned ring = shared_address(shared) + warp * STAGES * STAGE_BYTES;
    const Pages pages(pass, kv_head, D);
    const int first_page = item.first_key / PAGE_TOKENS, end_page = (item.end_key + PAGE_TOKENS - 1) / PAGE_TOKENS;
    PageTable table(pass.block_tables + item.table, first_page, end_page - 1);

    auto copy_page = [&](int page, int stage) {
        if (page < end_page) {
            const act* from = pages.at(table.at(page));
#pragma unroll
            for (int i = 0; i < PAGE_TOKENS * Rows::CHUNKS / WARP; i++) {
                int chunk = i * WARP + lane, key = chunk / Rows::CHUNKS;
                unsigned at = ring + stage * STAGE_BYTES + Rows::offset(key, chunk % Rows::CHUNKS);
                bool valid = page * PAGE_TOKENS + key < item.end_key;
                copy_async(at, from + chunk * 8, valid);
                copy_async(at + PAGE_TOKENS * Rows::BYTES, from + pages.to_values + chunk * 8, valid);
            }
        }
        end_copy_group();
    };
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        copy_page(first_page + warp + stage * ATTENTION_WARPS, stage);
    }

    // The queries, as the tensor cores take them; rows past the last are zero.
    unsigned queries[D / 16][4];
    Sight sight[2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = half * 8 + lane / 4, token = group.token(row), head = kv_head * group.size + row - token * group.size;
        sight[half] = sight_of(item, pass.window, token);
        const act* from = pass.qkv + ((long long)(item.query + token) * (pass.heads + 2 * pass.kv_heads) + head) * D + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            queries[k][half] = row < rows ? *reinterpret_cast<const unsigned*>(from + k * 16) : 0;
            queries[k][half + 2] = row < rows ? *reinterpret_cast<const unsigned*>(from + k * 16 + 8) : 0;
        }
    }
    const Sight lowest = sight_of(item, pass.window, 0), highest = sight_of(item, pass.window, item.queries - 1);

    const int permutation = Rows::permutation(lane % 8);
    const unsigned key_row = ring + (lane / 16 * 8 + lane % 8) * Rows::BYTES, key_chunk = (lane / 8 % 2 ^ permutation) * 16;
    const unsigned value_row = ring + (PAGE_TOKENS + lane % 16) * Rows::BYTES, value_chunk = (lane / 16 ^ permutation) * 16;
    Softmax softmax = {{-infinity(), -infinity()}, {0, 0}};
    float values[D / 8][4] = {};
    int stage = 0;
    for (int page = first_page + warp; page < end_page; page += ATTENTION_WARPS) {
        wait_for_copies<STAGES - 2>();
        // The page is there for all lanes, and none reads the stage before any more.
        __syncwarp();
        copy_page(page + (STAGES - 1) * ATTENTION_WARPS, stage == 0 ? STAGES - 1 : stage - 1);
        const unsigned at = stage * STAGE_BYTES;
        stage = stage == STAGES - 1 ? 0 : stage + 1;

        // Even and odd steps apart: a chain of products half as long.
        float scores[2][4] = {}, odd[2][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            unsigned keys[4];
            load_matrices(keys, key_row + at + (key_chunk ^ k * 32));
            float(&sums)[2][4] = k % 2 == 0 ? scores : odd;
            multiply_add(sums[0], queries[k], keys[0], keys[1]);
            multiply_add(sums[1], queries[k], keys[2], keys[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[0][i] += odd[0][i], scores[1][i] += odd[1][i];
        }
        const int first = page * PAGE_TOKENS;
        if (first + PAGE_TOKENS > lowest.end || first < highest.from) {
            hide(scores, first, sight[0], sight[1]);
        }
        float factor[2];
        softmax.add(scores, factor, pass.scale);
        rescale(values, factor);
        const unsigned weights[4] = {pack_pair(scores[0][0], scores[0][1]), pack_pair(scores[0][2], scores[0][3]),
                                     pack_pair(scores[1][0], scores[1][1]), pack_pair(scores[1][2], scores[1][3])};
#pragma unroll
        for (int v = 0; v < D / 16; v++) {
            unsigned of_keys[4];
            load_matrices_transposed(of_keys, value_row + at + (value_chunk ^ v * 32));
            multiply_add(values[2 * v], weights, of_keys[0], of_keys[1]);
            multiply_add(values[2 * v + 1], weights, of_keys[2], of_keys[3]);
        }
    }
    softmax.close();

    // The results of the warps, each in the place of its ring, [16][D + 8].
    constexpr int PITCH = D + 8;
    static_assert(M * PITCH * sizeof(float) <= STAGES * STAGE_BYTES);
    __shared__ float2 of_warps[ATTENTION_WARPS][M];
    wait_for_copies<0>();
    __syncwarp();
    float* mine = reinterpret_cast<float*>(shared + warp * STAGES * STAGE_BYTES);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = half * 8 + lane / 4;
        if (lane % 4 == 0) {
            of_warps[warp][row] = make_float2(softmax.maximum[half], softmax.sum[half]);
        }
        if (row < rows) {
#pragma unroll
            for (int v = 0; v < D / 8; v++) {
                *reinterpret_cast<float2*>(mine + row * PITCH + v * 8 + lane % 4 * 2) =
                    make_float2(values[v][2 * half], values[v][2 * half + 1]);
            }
        }
    }
    __syncthreads();
    for (int pair = threadIdx.x; pair < rows * (D / 2); pair += ATTENTION_THREADS) {
        const int row = pair / (D / 2), column = pair % (D / 2) * 2;
        float largest = -infinity();
#pragma unroll
        for (int w = 0; w < ATTENTION_WARPS; w++) {
            largest = fmaxf(largest, of_warps[w][row].x);
        }
        const float base = largest == -infinity() ? 0 : largest * pass.scale;
        float sum = 0, x = 0, y = 0;
#pragma unroll
        for (int w = 0; w < ATTENTION_WARPS; w++) {
            const float factor = exp2_fast(of_warps[w][row].x * pass.scale - base);
            const float* theirs = reinterpret_cast<const float*>(shared + w * STAGES * STAGE_BYTES) + row * PITCH + column;
            const float2 of_warp = *reinterpret_cast<const float2*>(theirs);
            sum += factor * of_warps[w][row].y;
            x += factor * of_warp.x;
            y += factor * of_warp.y;
        }
        const float inverse = sum > 0 ? 1 / sum : 0;
        const int token = group.token(row), head = kv_head * group.size + row - token * group.size;
        if (item.partial < 0) {
            const long long to = ((long long)(item.query + token) * pass.heads + head) * D + column;
            *reinterpret_cast<unsigned*>(pass.out + to) = pack_pair(x * inverse, y * inverse);
        } else {
            const long long slot = (long long)(item.partial + token) * pass.heads + head;
            *reinterpret_cast<float2*>(pass.partial_values + slot * D + column) = make_float2(x * inverse, y * inverse);
            if (column == 0) {
                pass.partial_sums[slot] = base + __log2f(sum);
            }
        }
    }
}

// Puts the partial results of tokens together. merges [count] of (token, first entry in slots, entries, 0).
// Launch: grid ceil(count * heads / ATTENTION_WARPS), a warp for a token and head.
template <int D>
__device__ __forceinline__ void merge(
    const int4* merges, const int* slots, const float* values, const float* sums, act* out, int count, int heads) {
    const int lane = threadIdx.x % WARP, task = blockIdx.x * ATTENTION_WARPS + threadIdx.x / WARP;
    const int head = task % heads;
    if (task >= count * heads) {
        return;
    }
    const int4 merge = merges[task / heads];
    slots += merge.y;
    float largest = -infinity();
    for (int i = lane; i < merge.z; i += WARP) {
        largest = fmaxf(largest, sums[(long long)slots[i] * heads + head]);
    }
    largest = max_lanes(largest);
    const float base = largest == -infinity() ? 0 : largest;
    float total = 0;
    float2 of_lane[(D + 63) / 64] = {};
    for (int i = 0; i < merge.z; i++) {
        const long long slot = (long long)slots[i] * heads + head;
        const float factor = exp2_fast(sums[slot] - base);
        total += factor;
#pragma unroll
        for (int column = 0; column < D; column += 64) {
            if (column + lane * 2 < D) {
                const float2 partial = *reinterpret_cast<const float2*>(values + slot * D + column + lane * 2);
                of_lane[column / 64].x += factor * partial.x;
                of_lane[column / 64].y += factor * partial.y;
            }
        }
    }
    const float inverse = total > 0 ? 1 / total : 0;
#pragma unroll
    for (int column = 0; column < D; column += 64) {
        if (column + lane * 2 < D) {
            *reinterpret_cast<unsigned*>(out + ((long long)merge.x * heads + head) * D + column + lane * 2) =
                pack_pair(of_lane[column / 64].x * inverse, of_lane[column / 64].y * inverse);
        }
    }
}

#define ATTENTION_KERNEL(WAY, D, BLOCKS)                                                                            \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, BLOCKS) attend_##WAY##_##D(                     \
        const WorkItem* items, const act* qkv, const act* pool, const int* block_tables, act* out,                  \
        float* partial_values, float* partial_sums, int heads, int kv_heads, int layers, int layer, float scale,    \
        int window) {                                                                                               \
        extern __shared__ __align__(128) unsigned char shared[];                                                    \
        const Launch pass = {qkv,   pool,     block_tables,     out,    partial_values, partial_sums,               \
                             heads, kv_heads, heads / kv_heads, layers, layer,          scale * 1.44269504f,        \
                             window > 0 ? window : 0x7fffffff};                                                     \
        const WorkItem item = items[blockIdx.x / kv_heads];                                                         \
        attend_##WAY<D>(item, pass, blockIdx.x % kv_heads, shared);                                                 \
    }
#define ATTENTION_KERNELS(D)                                                                                        \
    ATTENTION_KERNEL(tile, D, 2)                                                                                    \
    ATTENTION_KERNEL(few, D, 3)                                                                                     \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) merge_partials_##D(                             \
        const int4* merges, const int* slots, const float* values, const float* sums, act* out, int count,          \
        int heads) {                                                                                                \
        merge<D>(merges, slots, values, sums, out, count, heads);                                                   \
    }

ATTENTION_KERNELS(64)
ATTENTION_KERNELS(96)
ATTENTION_KERNELS(128)

#endif
