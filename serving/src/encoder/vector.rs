//! From what a model pools to what a caller gets.

/// Keeps the leading `dimensions` of a vector, all of them for `None`, and scales it to unit length. A vector of zeros stays one.
pub fn unit_vector(mut vector: Vec<f32>, dimensions: Option<u32>) -> Vec<f32> {
    if let Some(dimensions) = dimensions {
        vector.truncate(dimensions as usize);
    }
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_unit_length_whatever_is_kept() {
        assert_eq!(unit_vector(vec![3.0, 4.0, 12.0], Some(2)), [0.6, 0.8]);
        assert_eq!(unit_vector(vec![0.0, -2.0], None), [0.0, -1.0]);
        assert_eq!(unit_vector(vec![0.0, 0.0], None), [0.0, 0.0]);
        let huge = 2.0f32.powi(120);
        assert_eq!(unit_vector(vec![3.0 * huge, 4.0 * huge], Some(9)), [0.6, 0.8]);
    }
}
