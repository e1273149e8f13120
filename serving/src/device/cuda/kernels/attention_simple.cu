// Paged causal attention, the plain way: out = softmax(scale * q K^T) V for each token and query head.
//
// A query at position p sees keys at positions <= p, and > p - window where there is a window. The softmax is online (Milakov and
// Gimelshein 2018), over steps of 32 keys that begin on a page. What lies in a page outside the keys seen is never read.
//
// qkv [n, (heads + 2 * kv_heads) * head_dim] with turned queries, pool as in `pool_row`, rows [r] of (first token, token count,
// position of the first token, first entry in block_tables), row_of_token [n], positions [n], out [n, heads * head_dim];
// head_dim <= HEAD_DIM_MAX.
// Launch: grid (n, ceil(heads / ATTENTION_WARPS)), blocks of ATTENTION_WARPS warps, one warp for a token and head. In a step lanes
// are keys while scores are computed, then dimensions while values are added.
// Reference: device/cpu, attention. The path for single precision and for head sizes that the tensor cores' kernel does not have;
// bound by instructions: 4 * head_dim FLOPs for each query head and key seen, without tensor cores.

constexpr int ATTENTION_WARPS = 4;
constexpr int HEAD_DIM_MAX = 256;
constexpr int DIMS = HEAD_DIM_MAX / WARP;

template <int P>
__device__ __forceinline__ float dot(const float* q, const act* key, int head_dim) {
    float sum = 0;
    for (int d = 0; d < head_dim; d += P) {
        float values[P], queries[P];
        load<P>(key + d, values);
        load_floats<P>(q + d, queries);
#pragma unroll
        for (int i = 0; i < P; i++) {
            sum += queries[i] * values[i];
        }
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(ATTENTION_WARPS * WARP) attention_simple(
    const act* __restrict__ qkv, const act* __restrict__ pool, const int4* __restrict__ rows, const int* __restrict__ row_of_token,
    const int* __restrict__ positions, const int* __restrict__ block_tables, act* __restrict__ out, int heads, int kv_heads,
    int head_dim, int layers, int layer, float scale, int window) {
    __shared__ __align__(16) float queries[ATTENTION_WARPS][HEAD_DIM_MAX];
    int token = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int head = blockIdx.y * ATTENTION_WARPS + warp;
    if (head >= heads) {
        return;
    }
    float* q = queries[warp];
    const act* query = qkv + (long long)token * (heads + 2 * kv_heads) * head_dim + head * head_dim;
    for (int d = lane; d < head_dim; d += WARP) {
        q[d] = to_float(query[d]) * scale;
    }
    __syncwarp();

    int kv_head = head / (heads / kv_heads), end = positions[token] + 1;
    int first = window > 0 ? max(0, end - window) : 0;
    const int* pages = block_tables + rows[row_of_token[token]].w;
    // The distance of a page's values from its keys.
    long long to_values = (long long)kv_heads * PAGE_TOKENS * head_dim;
    float maximum = -infinity(), sum = 0, sums[DIMS] = {};
    for (int start = first / PAGE_TOKENS * PAGE_TOKENS; start < end; start += WARP) {
        int key = start + lane;
        bool seen = key >= first && key < end;
        const act* keys = pool;
        if (key < end) {
            keys += pool_row(pages[key / PAGE_TOKENS], layers, layer, 0, kv_heads, kv_head, key % PAGE_TOKENS, head_dim);
        }
        float score = -infinity();
        if (seen) {
            score = head_dim % PACK == 0 ? dot<PACK>(q, keys, head_dim) : dot<1>(q, keys, head_dim);
        }
        float larger = fmaxf(maximum, max_lanes(score));
        float rescale = exponential(maximum - larger);
        float weight = exponential(score - larger);
        maximum = larger;
        sum = sum * rescale + sum_lanes(weight, WARP);
#pragma unroll
        for (int i = 0; i < DIMS; i++) {
            sums[i] *= rescale;
        }
        u64 values = reinterpret_cast<u64>(keys + to_values);
        for (int j = max(first - start, 0); j < min(end - start, WARP); j++) {
            float of_key = __shfl_sync(ALL_LANES, weight, j);
            const act* value = reinterpret_cast<const act*>(__shfl_sync(ALL_LANES, values, j));
#pragma unroll
            for (int i = 0; i < DIMS; i++) {
                int d = i * WARP + lane;
                if (d < head_dim) {
                    sums[i] += of_key * to_float(value[d]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < DIMS; i++) {
        int d = i * WARP + lane;
        if (d < head_dim) {
            out[((long long)token * heads + head) * head_dim + d] = to_act(sums[i] / sum);
        }
    }
}
