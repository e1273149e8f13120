// Normalises and turns queries in place; normalises and turns keys, and stores them with the values in their pages.
//
// Norm of a head, where the model has one:  h[d] = h[d] / sqrt(mean(h^2) + eps) * norm[d].
// Rotary embedding (Su et al. 2021), halves of the leading rotary_dim elements paired, i < rotary_dim / 2:
//     h'[i]                  = h[i] * cos - h[i + rotary_dim / 2] * sin
//     h'[i + rotary_dim / 2] = h[i + rotary_dim / 2] * cos + h[i] * sin
// with (cos, sin) = angles[position, i]. Elements from rotary_dim on stay, and all do where `rotary` is 0.
//
// qkv [n, (heads + 2 * kv_heads) * head_dim], positions [n], writes [w] of (token, page * PAGE_TOKENS + place in the page),
// angles [max_context, rotary_dim / 2], q_norm and k_norm [head_dim] or null, pool as in `pool_row`.
// Launch: n + w blocks of ROPE_THREADS. The first n take the queries of a token each, the others the keys and values of a write;
// the two touch different elements of qkv. A head is worked on by a group of lanes, each with packs from both halves of a pair,
// so that no value changes lanes.
// Reference: device/cpu, rope, rmsnorm and kv. Bound: memory, 2 * (n * heads + w * 2 * kv_heads) * head_dim * sizeof(act) bytes.

constexpr int ROPE_THREADS = 128;

// One head: read at `from`, written to `to`, which may be the same.
struct Head {
    const act* from;
    act* to;
    // Weights of the norm, or null.
    const float* norm;
    // (cos, sin) of the token's position, or null.
    const float2* angles;
};

// The sizes of a head. It has head_dim / 2 / P units: a unit is two packs of P elements that lie `apart`, both of the part that
// turns or both of the part that stays.
template <int P>
struct Units {
    int head_dim, rotary_dim;

    __device__ int count() const { return head_dim / 2 / P; }
    __device__ bool turns(int unit) const { return unit * P < rotary_dim / 2; }
    __device__ int first(int unit) const { return turns(unit) ? unit * P : rotary_dim / 2 + unit * P; }
    __device__ int apart(int unit) const { return (turns(unit) ? rotary_dim : head_dim - rotary_dim) / 2; }
};

// Works on one head with a group of `lanes` neighbouring lanes, of which this is number `lane`. All lanes of a warp must call it;
// those that are not `active` change nothing.
template <int P>
__device__ __forceinline__ void turn_head(Head head, Units<P> units, int lane, int lanes, bool active, float eps) {
    int count = active ? units.count() : 0;
    float scale = 1;
    if (head.norm) {
        float squares = 0;
        for (int unit = lane; unit < count; unit += lanes) {
            float left[P], right[P];
            load<P>(head.from + units.first(unit), left);
            load<P>(head.from + units.first(unit) + units.apart(unit), right);
#pragma unroll
            for (int i = 0; i < P; i++) {
                squares += left[i] * left[i] + right[i] * right[i];
            }
        }
        scale = 1 / sqrtf(sum_lanes(squares, lanes) / units.head_dim + eps);
    }
    for (int unit = lane; unit < count; unit += lanes) {
        int first = units.first(unit), second = first + units.apart(unit);
        bool turns = head.angles && units.turns(unit);
        if (!turns && !head.norm) {
            if (head.from != head.to) {
                copy_pack<P>(head.to + first, head.from + first);
                copy_pack<P>(head.to + second, head.from + second);
            }
            continue;
        }
        float left[P], right[P];
        load<P>(head.from + first, left);
        load<P>(head.from + second, right);
        if (head.norm) {
            float of_left[P], of_right[P];
            load_floats<P>(head.norm + first, of_left);
            load_floats<P>(head.norm + second, of_right);
#pragma unroll
            for (int i = 0; i < P; i++) {
                left[i] = left[i] * scale * of_left[i];
                right[i] = right[i] * scale * of_right[i];
            }
        }
        if (turns) {
#pragma unroll
            for (int i = 0; i < P; i++) {
                float2 angle = head.angles[first + i];
                float l = left[i], r = right[i];
                left[i] = l * angle.x - r * angle.y;
                right[i] = r * angle.x + l * angle.y;
            }
        }
        store<P>(head.to + first, left);
        store<P>(head.to + second, right);
    }
}

// Lets groups of lanes work on `count` heads, which `head_at` describes: all of them are normalised, or none.
template <int P, typename HeadAt>
__device__ __forceinline__ void turn_heads(int count, Units<P> units, float eps, HeadAt head_at) {
    int lanes = 1;
    while (lanes < WARP && lanes < units.count()) {
        lanes *= 2;
    }
    int groups = ROPE_THREADS / lanes;
    for (int first = 0; first < count; first += groups) {
        int head = first + threadIdx.x / lanes;
        turn_head<P>(head_at(min(head, count - 1)), units, threadIdx.x % lanes, lanes, head < count, eps);
    }
}

struct Sizes {
    int n, heads, kv_heads, head_dim, rotary_dim, layers, layer;
};

template <int P>
__device__ __forceinline__ void turn_queries(
    act* qkv, const float2* angles, const float* q_norm, const Sizes& sizes, float eps) {
    act* queries = qkv + (long long)blockIdx.x * (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
    turn_heads<P>(sizes.heads, {sizes.head_dim, sizes.rotary_dim}, eps, [&](int head) {
        act* at = queries + head * sizes.head_dim;
        return Head{at, at, q_norm, angles};
    });
}

template <int P>
__device__ __forceinline__ void store_keys_and_values(
    const act* qkv, int2 write, const float2* angles, const float* k_norm, act* pool, const Sizes& sizes, float eps) {
    int width = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
    const act* keys = qkv + (long long)write.x * width + sizes.heads * sizes.head_dim;
    int page = write.y / PAGE_TOKENS, offset = write.y % PAGE_TOKENS;
    // Heads of keys, then heads of values: neither turned nor normalised.
    auto head_at = [&](int head) {
        bool value = head >= sizes.kv_heads;
        int of_kind = value ? head - sizes.kv_heads : head;
        act* to = pool + pool_row(page, sizes.layers, sizes.layer, value, sizes.kv_heads, of_kind, offset, sizes.head_dim);
        return Head{keys + head * sizes.head_dim, to, value ? nullptr : k_norm, value ? nullptr : angles};
    };
    Units<P> units{sizes.head_dim, sizes.rotary_dim};
    if (k_norm) {
        turn_heads<P>(sizes.kv_heads, units, eps, head_at);
        turn_heads<P>(sizes.kv_heads, units, eps, [&](int head) { return head_at(head + sizes.kv_heads); });
    } else {
        turn_heads<P>(2 * sizes.kv_heads, units, eps, head_at);
    }
}

template <int P>
__device__ __forceinline__ void turn_and_store(
    act* qkv, const int* positions, const int2* writes, const float2* angles, const float* q_norm, const float* k_norm, act* pool,
    const Sizes& sizes, float eps, int rotary) {
    bool queries = blockIdx.x < sizes.n;
    int2 write = queries ? make_int2(blockIdx.x, 0) : writes[blockIdx.x - sizes.n];
    const float2* of_position = rotary ? angles + (long long)positions[write.x] * (sizes.rotary_dim / 2) : nullptr;
    if (queries) {
        turn_queries<P>(qkv, of_position, q_norm, sizes, eps);
    } else {
        store_keys_and_values<P>(qkv, write, of_position, k_norm, pool, sizes, eps);
    }
}

extern "C" __global__ void __launch_bounds__(ROPE_THREADS) rope_and_store(
    act* qkv, const int* __restrict__ positions, const int2* __restrict__ writes, const float2* __restrict__ angles,
    const float* __restrict__ q_norm, const float* __restrict__ k_norm, act* pool, int n, int w, int heads, int kv_heads,
    int head_dim, int rotary_dim, int layers, int layer, float eps, int rotary) {
    if (blockIdx.x >= n + w) {
        return;
    }
    Sizes sizes{n, heads, kv_heads, head_dim, rotary_dim, layers, layer};
    if (rotary_dim / 2 % PACK == 0 && (head_dim - rotary_dim) / 2 % PACK == 0) {
        turn_and_store<PACK>(qkv, positions, writes, angles, q_norm, k_norm, pool, sizes, eps, rotary);
    } else {
        turn_and_store<1>(qkv, positions, writes, angles, q_norm, k_norm, pool, sizes, eps, rotary);
    }
}
