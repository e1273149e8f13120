// Draws out[i] from N(0, std^2), i < count, for weights that are not read from anywhere.
// Two uniform numbers from the bits of (seed, index), then Box and Muller. `out` is a part of a matrix: rows of `width` of its
// `stride` columns, from its value number `first` on, so that a part has the values of the whole. Bound: writes.

extern "C" __global__ void __launch_bounds__(256)
fill_normal(act* out, long long count, float std, u64 seed, long long first, long long width, long long stride) {
    long long threads = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += threads) {
        u64 bits = bits_of(seed, first + i / width * stride + i % width);
        float u = ((unsigned)(bits >> 40) + 0.5f) * (1.0f / 16777216.0f);
        float v = (unsigned)(bits & 0xFFFFFF) * (1.0f / 16777216.0f);
        out[i] = to_act(std * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
    }
}
