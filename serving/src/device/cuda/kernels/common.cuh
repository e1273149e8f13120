// What all kernels share: the activation type, packs of 16 bytes, reductions. The host puts this text in front of every kernel file.
//
// `act` is the type of activations, weights and the KV pool: bfloat16 as raw bits, or float where the host defines ACT_F32.
// Arithmetic is in float; an activation is rounded once, when it is stored.
//
// Kernels that walk over a dimension are written for packs of P neighbouring elements: P is PACK where the dimension is a
// multiple of it, so that every access is 16 bytes wide, and 1 where it is not. Buffers begin on a multiple of 16 bytes.
// A sum is formed in an order that depends on the sizes of its row alone, never on what else is in the pass.

typedef unsigned long long u64;
// A number of FP8 with 4 bits of exponent and 3 of mantissa (Micikevicius et al. 2022), as raw bits.
typedef unsigned char e4m3;

#ifdef ACT_F32
typedef float act;
#else
typedef unsigned short act;
#endif

[[maybe_unused]] constexpr int PACK = 16 / sizeof(act);
// Tokens of a KV page.
[[maybe_unused]] constexpr int PAGE_TOKENS = 16;
// The largest e4m3.
[[maybe_unused]] constexpr float E4M3_MAX = 448;
constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float to_float(act x) {
#ifdef ACT_F32
    return x;
#else
    return __uint_as_float((unsigned)x << 16);
#endif
}

__device__ __forceinline__ act to_act(float x) {
#ifdef ACT_F32
    return x;
#else
    act rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
#endif
}

// Reads P activations; 16 bytes at once where P is PACK.
template <int P>
__device__ __forceinline__ void load(const act* from, float (&to)[P]) {
    if constexpr (P == 1) {
        to[0] = to_float(*from);
    } else {
#ifdef ACT_F32
        float4 raw = *reinterpret_cast<const float4*>(from);
        to[0] = raw.x, to[1] = raw.y, to[2] = raw.z, to[3] = raw.w;
#else
        uint4 raw = *reinterpret_cast<const uint4*>(from);
        unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[2 * i] = __uint_as_float(words[i] << 16);
            to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
#endif
    }
}

// Rounds and writes P activations; 16 bytes at once where P is PACK.
template <int P>
__device__ __forceinline__ void store(act* to, const float (&from)[P]) {
    if constexpr (P == 1) {
        *to = to_act(from[0]);
    } else {
#ifdef ACT_F32
        *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
#else
        unsigned words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(from[2 * i + 1]), "f"(from[2 * i]));
        }
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
#endif
    }
}

// Rounds two floats to e4m3, to the nearest and at ties to the even one; what is too large becomes the largest. The first is the
// low byte.
__device__ __forceinline__ unsigned to_e4m3x2(float first, float second) {
#if __CUDA_ARCH__ >= 890
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
    return pair;
#else
    // Chips that do not know the type are given no model in it.
    return 0;
#endif
}

// Rounds and writes a pack in e4m3.
__device__ __forceinline__ void store_e4m3(e4m3* to, const float (&from)[PACK]) {
    unsigned words[PACK / 4];
#pragma unroll
    for (int i = 0; i < PACK / 4; i++) {
        words[i] = to_e4m3x2(from[4 * i], from[4 * i + 1]) | to_e4m3x2(from[4 * i + 2], from[4 * i + 3]) << 16;
    }
    if constexpr (PACK == 8) {
        *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[PACK / 4 - 1]);
    } else {
        *reinterpret_cast<unsigned*>(to) = words[0];
    }
}

// Reads P floats, four at once where P allows.
template <int P>
__device__ __forceinline__ void load_floats(const float* from, float (&to)[P]) {
    if constexpr (P == 1) {
        to[0] = *from;
    } else {
#pragma unroll
        for (int i = 0; i < P; i += 4) {
            float4 raw = *reinterpret_cast<const float4*>(from + i);
            to[i] = raw.x, to[i + 1] = raw.y, to[i + 2] = raw.z, to[i + 3] = raw.w;
        }
    }
}

// Copies P activations without a look at them.
template <int P>
__device__ __forceinline__ void copy_pack(act* to, const act* from) {
    if constexpr (P == 1) {
        *to = *from;
    } else {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    }
}

// e to the power of x: as exact as the single-precision mode promises, or as good as bfloat16 can show.
__device__ __forceinline__ float exponential(float x) {
#ifdef ACT_F32
    return expf(x);
#else
    return __expf(x);
#endif
}

// The sum over groups of `width` neighbouring lanes, a power of two. All lanes of the warp must call it.
__device__ __forceinline__ float sum_lanes(float x, int width) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

__device__ __forceinline__ float max_lanes(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

// The sum over a block of WARPS warps, for all its threads.
template <int WARPS>
__device__ __forceinline__ float sum_block(float x) {
    __shared__ float of_warps[WARPS];
    x = sum_lanes(x, WARP);
    if (threadIdx.x % WARP == 0) {
        of_warps[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    x = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        x += of_warps[warp];
    }
    __syncthreads();
    return x;
}

// The largest magnitude of a row in e4m3, for all threads of a block of WARPS warps, given that of each thread: at least so large
// that one can divide by it.
template <int WARPS>
__device__ __forceinline__ float largest_of_block(float x) {
    __shared__ float of_warps[WARPS];
    x = max_lanes(x);
    if (threadIdx.x % WARP == 0) {
        of_warps[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    x = 1e-30f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        x = fmaxf(x, of_warps[warp]);
    }
    __syncthreads();
    return x;
}

// Where the row of head `head` at place `offset` of page `page` begins in the KV pool, which is
// [pages][layers][keys, values][kv_heads][PAGE_TOKENS][head_dim].
__device__ __forceinline__ long long pool_row(
    long long page, int layers, int layer, int values, int kv_heads, int head, int offset, int head_dim) {
    return ((((page * layers + layer) * 2 + values) * kv_heads + head) * PAGE_TOKENS + offset) * head_dim;
}

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// 64 random bits that depend on seed and number alone, the host's to the bit. Reference: split_mix.
__device__ __forceinline__ u64 bits_of(u64 seed, u64 number) {
    const u64 golden = 0x9e3779b97f4a7c15ull;
    return mix(mix(seed + golden) ^ (number + 1) * golden);
}
