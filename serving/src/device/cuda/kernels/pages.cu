// Copies the first tokens of pages to other pages, in all layers. No page of a launch is written twice, or both read and written.
//
// copies of (page read, page written, tokens, unused), pool as in `pool_row`.
// Launch: layers * 2 * kv_heads blocks of COPY_THREADS for each copy, each taking what a layer and head keep in one piece.
// Reference: device/cpu, kv. Bound: memory, 2 * layers * 2 * kv_heads * tokens * head_dim * sizeof(act) bytes for each copy.

constexpr int COPY_THREADS = 128;

template <int P>
__device__ __forceinline__ void copy_piece(const act* from, act* to, int len) {
#pragma unroll 4
    for (int i = threadIdx.x * P; i < len; i += COPY_THREADS * P) {
        copy_pack<P>(to + i, from + i);
    }
}

extern "C" __global__ void __launch_bounds__(COPY_THREADS) copy_pages(
    const int4* __restrict__ copies, act* pool, int layers, int kv_heads, int head_dim) {
    int pieces = layers * 2 * kv_heads;
    int4 copy = copies[blockIdx.x / pieces];
    long long piece = blockIdx.x % pieces;
    // A page is in one piece, so that only its beginning depends on its number.
    long long size = (long long)PAGE_TOKENS * head_dim;
    const act* from = pool + (copy.x * (long long)pieces + piece) * size;
    act* to = pool + (copy.y * (long long)pieces + piece) * size;
    if (head_dim % PACK == 0) {
        copy_piece<PACK>(from, to, copy.z * head_dim);
    } else {
        copy_piece<1>(from, to, copy.z * head_dim);
    }
}
