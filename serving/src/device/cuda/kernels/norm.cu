// RMSNorm: y[i, c] = x[j, c] / sqrt(mean(x[j, :]^2) + eps) * weight[c], where j is index[i], or i without an index.
//
// x [rows, hidden], index [rows of y] or null, weight [hidden], y [rows of y, hidden].
// Launch: a block of NORM_THREADS for each row of y. The row is read twice, the second time from the L1 cache.
// Reference: device/cpu, rmsnorm. Bound: memory, 2 * rows of y * hidden * sizeof(act) bytes.

constexpr int NORM_THREADS = 256;

template <int P>
__device__ __forceinline__ void normalise(const act* x, const float* weight, act* y, int hidden, float eps) {
    float squares = 0;
#pragma unroll 4
    for (int c = threadIdx.x * P; c < hidden; c += NORM_THREADS * P) {
        float values[P];
        load<P>(x + c, values);
#pragma unroll
        for (int i = 0; i < P; i++) {
            squares += values[i] * values[i];
        }
    }
    float scale = 1 / sqrtf(sum_block<NORM_THREADS / WARP>(squares) / hidden + eps);
#pragma unroll 2
    for (int c = threadIdx.x * P; c < hidden; c += NORM_THREADS * P) {
        float values[P], weights[P];
        load<P>(x + c, values);
        load_floats<P>(weight + c, weights);
#pragma unroll
        for (int i = 0; i < P; i++) {
            values[i] = values[i] * scale * weights[i];
        }
        store<P>(y + c, values);
    }
}

extern "C" __global__ void __launch_bounds__(NORM_THREADS) rms_norm(
    const act* __restrict__ x, const int* __restrict__ index, const float* __restrict__ weight, act* __restrict__ y, int hidden,
    float eps) {
    int row = index ? index[blockIdx.x] : blockIdx.x;
    x += (long long)row * hidden;
    y += (long long)blockIdx.x * hidden;
    if (hidden % PACK == 0) {
        normalise<PACK>(x, weight, y, hidden, eps);
    } else {
        normalise<1>(x, weight, y, hidden, eps);
    }
}

// The same for an input of a product in FP8: y[i, c] * scales[i] is RMSNorm of x[i, :], and the largest |y| of a row is E4M3_MAX.
//
// y [rows, hidden] in e4m3, scales [rows]; hidden is a multiple of 16. The factor that norms a row goes into its scale alone.
// Launch: a block of NORM_THREADS for each row. Reference: device/cpu, rmsnorm. Bound: memory, rows * hidden * (sizeof(act) + 1).
extern "C" __global__ void __launch_bounds__(NORM_THREADS) rms_norm_e4m3(
    const act* __restrict__ x, const float* __restrict__ weight, e4m3* __restrict__ y, float* __restrict__ scales, int hidden,
    float eps) {
    x += (long long)blockIdx.x * hidden;
    y += (long long)blockIdx.x * hidden;
    float squares = 0, largest = 0;
#pragma unroll 4
    for (int c = threadIdx.x * PACK; c < hidden; c += NORM_THREADS * PACK) {
        float values[PACK], weights[PACK];
        load<PACK>(x + c, values);
        load_floats<PACK>(weight + c, weights);
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            squares += values[i] * values[i];
            largest = fmaxf(largest, fabsf(values[i] * weights[i]));
        }
    }
    squares = sum_block<NORM_THREADS / WARP>(squares);
    largest = largest_of_block<NORM_THREADS / WARP>(largest);
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = largest / E4M3_MAX / sqrtf(squares / hidden + eps);
    }
    float up = E4M3_MAX / largest;
#pragma unroll 2
    for (int c = threadIdx.x * PACK; c < hidden; c += NORM_THREADS * PACK) {
        float values[PACK], weights[PACK];
        load<PACK>(x + c, values);
        load_floats<PACK>(weight + c, weights);
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            values[i] = values[i] * weights[i] * up;
        }
        store_e4m3(y + c, values);
    }
}
