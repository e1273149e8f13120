// Logits of chosen tokens: logits[i] = hidden[pairs[i].x, :] . head[pairs[i].y, :], for i < count.
//
// hidden [rows, hidden_size], head [vocabulary, hidden_size], pairs [count] of (row, token), logits [count].
// Launch: ceil(count / HEAD_WARPS) blocks of HEAD_WARPS warps, one for each pair.
// Reference: device/cpu, head. Bound: memory, hidden_size * sizeof(act) bytes for each pair, and as much for each row.

constexpr int HEAD_WARPS = 8;

template <int P>
__device__ __forceinline__ float dot_of_warp(const act* a, const act* b, int len) {
    float sum = 0;
#pragma unroll 4
    for (int c = threadIdx.x % WARP * P; c < len; c += WARP * P) {
        float of_a[P], of_b[P];
        load<P>(a + c, of_a);
        load<P>(b + c, of_b);
#pragma unroll
        for (int i = 0; i < P; i++) {
            sum += of_a[i] * of_b[i];
        }
    }
    return sum_lanes(sum, WARP);
}

extern "C" __global__ void __launch_bounds__(HEAD_WARPS * WARP) candidate_logits(
    const act* __restrict__ hidden, const act* __restrict__ head, const int2* __restrict__ pairs, float* __restrict__ logits,
    int count, int hidden_size) {
    int i = blockIdx.x * HEAD_WARPS + threadIdx.x / WARP;
    if (i >= count) {
        return;
    }
    int2 pair = pairs[i];
    const act* of_row = hidden + (long long)pair.x * hidden_size;
    const act* of_token = head + (long long)pair.y * hidden_size;
    float logit = hidden_size % PACK == 0 ? dot_of_warp<PACK>(of_row, of_token, hidden_size)
                                          : dot_of_warp<1>(of_row, of_token, hidden_size);
    if (threadIdx.x % WARP == 0) {
        logits[i] = logit;
    }
}
