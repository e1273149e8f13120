// Embedding: x[t, :] = table[token of t, :], for t < n.
//
// tokens [n]: a token's id, or ~s for the token that was last sampled into slot s. table [vocabulary, hidden], x [n, hidden].
// Launch: a block of EMBED_THREADS for each token. Reference: device/cpu, forward. Bound: memory, 2 * n * hidden * sizeof(act) bytes.

constexpr int EMBED_THREADS = 128;

template <int P>
__device__ __forceinline__ void copy_row(const act* from, act* to, int hidden) {
#pragma unroll 4
    for (int c = threadIdx.x * P; c < hidden; c += EMBED_THREADS * P) {
        copy_pack<P>(to + c, from + c);
    }
}

extern "C" __global__ void __launch_bounds__(EMBED_THREADS) embed(
    const int* __restrict__ tokens, const int* __restrict__ slots, const act* __restrict__ table, act* __restrict__ x, int n,
    int hidden) {
    int t = blockIdx.x;
    if (t >= n) {
        return;
    }
    int token = tokens[t];
    if (token < 0) {
        token = slots[~token];
    }
    const act* from = table + (long long)token * hidden;
    act* to = x + (long long)t * hidden;
    if (hidden % PACK == 0) {
        copy_row<PACK>(from, to, hidden);
    } else {
        copy_row<1>(from, to, hidden);
    }
}
