//! One matrix product with inputs of its own, for `examples/cpu_bench.rs`.

use std::fmt;

use pulp::Arch;

use super::device::Activations;
use super::gemm::{GemmScratch, Start, gemm};
use super::panels::{Encoding, PackedMatrix};
use crate::model::DType;

/// A product of activations [m, k] with packed weights [n, k].
pub struct Product {
    arch: Arch,
    activations: Vec<f32>,
    weights: PackedMatrix,
    out: Vec<f32>,
    scratch: GemmScratch,
}

impl Product {
    /// Makes a product of numbers, with the instructions of `arch`; weights are stored as `dtype`, `k` of whose values must be whole
    /// blocks.
    pub fn new(arch: Arch, activations: Activations, [m, n, k]: [usize; 3], dtype: DType) -> Self {
        let values = |len: usize| (0..len).map(|i| (i * 37 % 101) as f32 / 101.0 - 0.5).collect::<Vec<_>>();
        let mut weights = PackedMatrix::zeros(arch, Encoding::of([dtype].into_iter()), n, k);
        let bytes: Vec<u8> = (0..dtype.row_bytes(k).expect("rows of whole blocks")).map(|i| (i * 37 % 60) as u8).collect();
        for row in 0..n {
            weights.set_row(row, dtype, &bytes);
        }
        if activations == Activations::Int8 {
            weights = weights.multiply_bytes();
        }
        Product { arch, activations: values(m * k), weights, out: vec![0.0; m * n], scratch: GemmScratch::default() }
    }

    /// Multiplies once on the rayon pool of the calling thread.
    pub fn run(&mut self) {
        gemm(self.arch, &mut self.scratch, &self.activations, &self.weights, &mut self.out, Start::Zero);
    }
}

impl fmt::Debug for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Product").field("weights", &(self.weights.n(), self.weights.k())).finish_non_exhaustive()
    }
}
