//! Single kernels on the CPU against plain twins, on shapes that models of the suite have not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use holdfast_model::WeightMatrix;

use super::Emulated;
use crate::WeightFormat;
use crate::card::{Address, Card, Launch, launch};
use crate::kernels::{
    AttendParams, AttendTile, CapParams, EmbedParams, FillParams, GateParams, Input, Kernel, Matrix, NormParams,
    Params, ProductParams, RateParams, RouteParams, RouterParams, ShareParams, TakeParams, TurnParams,
};
use crate::matrix::{load, padded, put};

fn floats(card: &mut Emulated, from: Address, count: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; count];
    card.download(from, bytemuck::cast_slice_mut(&mut out)).unwrap();
    out
}

fn random(rng: &mut fastrand::Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

/// A value as bf16 holds it.
fn rounded(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[test]
fn structures_are_as_large_as_the_kernels_think() {
    fn check<P: Params>(card: &Emulated) {
        for kernel in P::KERNELS {
            assert_eq!(card.size_of_params(*kernel), size_of::<P>(), "{kernel:?}");
        }
    }
    let Some(card) = Emulated::new() else { return };
    check::<EmbedParams>(&card);
    check::<NormParams>(&card);
    check::<GateParams>(&card);
    check::<TakeParams>(&card);
    check::<CapParams>(&card);
    check::<TurnParams>(&card);
    check::<AttendParams>(&card);
    check::<ProductParams>(&card);
    check::<RouterParams>(&card);
    check::<RouteParams>(&card);
    check::<ShareParams>(&card);
    check::<FillParams>(&card);
    check::<RateParams>(&card);
    assert_eq!(size_of::<AttendTile>(), 32);
}

/// Rows in the form of a product's input.
fn take(card: &mut Emulated, rows: &[f32], width: usize, format: WeightFormat, narrow: bool) -> Input {
    let (count, depth) = (rows.len() / width, padded(width));
    let values = put(card, rows).unwrap();
    let narrow = put(card, &vec![u8::from(narrow); count]).unwrap();
    let mut input = Input { depth: depth as u32, ..Input::default() };
    match format {
        WeightFormat::Bf16 => input.bf16 = card.allocate(2 * (count * depth) as u64).unwrap(),
        WeightFormat::Nested => {
            input.codes = card.allocate((count * depth) as u64).unwrap();
            input.scales = card.allocate((count * depth / 16) as u64).unwrap();
            input.shifts = card.allocate((count * depth / 8) as u64).unwrap();
        }
    }
    let params = TakeParams { values, rows: Address::NULL, narrow, input, width: width as u32 };
    let whole = Launch { grid: [count as u32, 1, 1], shared_bytes: 4 * width as u32 };
    launch(card, Kernel::Take, whole, &params).unwrap();
    input
}

fn multiply(card: &mut Emulated, kernel: Kernel, matrix: Matrix, input: Input, count: usize, narrow: bool) -> Vec<f32> {
    let out = put(card, &vec![f32::NAN; count * matrix.width as usize]).unwrap();
    let params =
        ProductParams { matrix, input, rows: Address::NULL, out, count: count as u32, narrow: u32::from(narrow) };
    let grid = match kernel {
        Kernel::ProductBf16Few | Kernel::ProductNestedFew => {
            [matrix.width.div_ceil(16), (count as u32).div_ceil(32), 1]
        }
        _ => [(count as u32).div_ceil(64), matrix.width.div_ceil(128), 1],
    };
    launch(card, kernel, Launch { grid, shared_bytes: 0 }, &params).unwrap();
    floats(card, out, count * matrix.width as usize)
}

/// Products of any number of rows have the bits of the row alone, through both kernels, and are near the product in f64.
#[test]
fn products_do_not_depend_on_the_number_of_rows() {
    let Some(mut card) = Emulated::new() else { return };
    let mut rng = fastrand::Rng::with_seed(1);
    for (width, depth) in [(16, 64), (7, 20), (150, 600), (33, 1_100)] {
        let weights = random(&mut rng, width * depth);
        let bias = random(&mut rng, width);
        let rows_max = 67;
        let rows = random(&mut rng, rows_max * depth);
        for (format, narrow) in
            [(WeightFormat::Bf16, false), (WeightFormat::Nested, false), (WeightFormat::Nested, true)]
        {
            let (few, many) = match format {
                WeightFormat::Bf16 => (Kernel::ProductBf16Few, Kernel::ProductBf16Many),
                WeightFormat::Nested => (Kernel::ProductNestedFew, Kernel::ProductNestedMany),
            };
            let matrix = load(&mut card, &[(WeightMatrix::of(&weights, depth), Some(&bias))], depth, format).unwrap();
            let all = take(&mut card, &rows, depth, format, narrow);
            let want = multiply(&mut card, many, matrix, all, rows_max, narrow);
            for row in [0, 1, 40, rows_max - 1] {
                let alone = take(&mut card, &rows[row * depth..(row + 1) * depth], depth, format, narrow);
                for kernel in [few, many] {
                    let got = multiply(&mut card, kernel, matrix, alone, 1, narrow);
                    let same = got.iter().zip(&want[row * width..]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{format:?} {narrow} {width} x {depth}, row {row}, {kernel:?}");
                }
            }
            for count in [2, 9, 31, 32, 65] {
                let got = multiply(&mut card, few, matrix, all, count, narrow);
                let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{format:?} {narrow} {width} x {depth}, {count} rows");
            }
            let tolerance = match (format, narrow) {
                (WeightFormat::Bf16, _) => 1e-5,
                (WeightFormat::Nested, false) => 0.02,
                (WeightFormat::Nested, true) => 0.15,
            } * (depth as f64).sqrt();
            let exact = |value: f32| f64::from(if format == WeightFormat::Bf16 { rounded(value) } else { value });
            for (at, got) in want.iter().enumerate() {
                let (row, output) = (at / width, at % width);
                let pairs = rows[row * depth..][..depth].iter().zip(&weights[output * depth..][..depth]);
                let dot: f64 = pairs.map(|(x, w)| exact(*x) * exact(*w)).sum::<f64>() + f64::from(bias[output]);
                assert!(
                    (f64::from(*got) - dot).abs() <= tolerance,
                    "{format:?} {narrow} {width} x {depth}: {got} {dot}"
                );
            }
        }
    }
}

/// Rows of a matrix that are read back are what was packed.
#[test]
fn embeddings_are_what_was_packed() {
    let Some(mut card) = Emulated::new() else { return };
    let (width, depth) = (50, 70);
    let values: Vec<f32> = (0..width * depth).map(|at| (at % 255) as f32 - 127.0).collect();
    for (format, tolerance) in [(WeightFormat::Bf16, 0.0), (WeightFormat::Nested, 0.51)] {
        let table = load(&mut card, &[(WeightMatrix::of(&values, depth), None)], depth, format).unwrap();
        let tokens = put(&mut card, &(0..width as u32).rev().collect::<Vec<_>>()).unwrap();
        let stream = card.allocate((width * depth * 4) as u64).unwrap();
        let params = EmbedParams { table, tokens, stream, hidden: depth as u32, scale: 2.0 };
        launch(&mut card, Kernel::Embed, Launch { grid: [width as u32, 1, 1], shared_bytes: 0 }, &params).unwrap();
        let got = floats(&mut card, stream, width * depth);
        for (row, got) in got.chunks_exact(depth).enumerate() {
            let want = &values[(width - 1 - row) * depth..][..depth];
            let near = got.iter().zip(want).all(|(a, b)| (a - 2.0 * b).abs() <= 2.0 * tolerance);
            assert!(near, "{format:?} {row}");
        }
    }
}

/// The measurement of the matrix instructions computes something, so that nothing is left out when it is compiled.
#[test]
fn the_rate_is_measured_on_numbers() {
    let Some(mut card) = Emulated::new() else { return };
    for integers in [0, 1] {
        let out = put(&mut card, &[f32::NAN; 256]).unwrap();
        let params = RateParams { out, steps: 3, integers };
        launch(&mut card, Kernel::MatrixRate, Launch { grid: [1, 1, 1], shared_bytes: 0 }, &params).unwrap();
        let sums = floats(&mut card, out, 256);
        assert!(sums.iter().all(|sum| sum.is_finite()) && sums.iter().any(|sum| *sum != sums[0]), "{integers}");
    }
}
