// Draws out[i] from N(0, std^2), i < count, for weights that are not read from anywhere.
// Two uniform numbers from two rounds of the finaliser of SplitMix64 over (seed, i), then Box and Muller. Bound: writes.

__device__ __forceinline__ unsigned long long mix(unsigned long long z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

extern "C" __global__ void __launch_bounds__(256)
fill_normal(act* out, long long count, float std, unsigned long long seed) {
    const unsigned long long golden = 0x9E3779B97F4A7C15ull;
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        unsigned long long bits = mix(mix(seed + golden) ^ ((unsigned long long)i + 1) * golden);
        float u = ((unsigned)(bits >> 40) + 0.5f) * (1.0f / 16777216.0f);
        float v = (unsigned)(bits & 0xFFFFFF) * (1.0f / 16777216.0f);
        out[i] = to_act(std * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
    }
}
