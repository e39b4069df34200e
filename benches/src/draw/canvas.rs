//! A sheet of [`WIDTH`] by [`HEIGHT`] that lines, areas and letters are put on, whatever it becomes.
//!
//! In: a painter. Out: the text of an SVG, or the bytes of a PNG. plotters' backends round to whole pixels, and only their
//! thinnest lines are smooth; so both are painted [`DENSITY`] times as large. The SVG then says its size, the PNG is averaged
//! down to it. Deliberately not here: what is painted.

use anyhow::{Context as _, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{
    BitMapBackend, Circle, DrawingArea, DrawingBackend, IntoDrawingArea, PathElement, Polygon, Rectangle, SVGBackend,
    Text,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, IntoFont, RGBAColor, ShapeStyle, TextStyle, register_font};

use super::colour::{Colour, PAPER};

/// Of the picture, in pixels.
pub(super) const WIDTH: u32 = 1000;
/// Of the picture, in pixels.
pub(super) const HEIGHT: u32 = 600;
/// Pixels of the painting for one of the picture, on each side.
const DENSITY: u32 = 3;
const PAINTED: (u32, u32) = (WIDTH * DENSITY, HEIGHT * DENSITY);

/// How far letters stand under the top of their box, by their size: between the SVG backend's 0.61 and the bitmap's 0.5.
const BASELINE: f64 = 0.55;

/// A place on the sheet, from its left and its top.
pub(super) type Place = (f64, f64);

/// The sheet.
pub(super) struct Canvas<DB: DrawingBackend>(DrawingArea<DB, Shift>);

/// How letters look.
#[derive(Clone, Copy)]
pub(super) struct Letters {
    pub(super) size: f64,
    pub(super) colour: Colour,
    /// Which end of the text is at its place.
    pub(super) from: HPos,
    /// Reads from the bottom to the top.
    pub(super) upright: bool,
}

/// Paints an SVG.
pub(super) fn svg(paint: impl FnOnce(&Canvas<SVGBackend<'_>>) -> anyhow::Result<()>) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let canvas = Canvas::new(SVGBackend::with_string(&mut text, PAINTED))?;
        paint(&canvas)?;
        canvas.0.present()?;
    }
    let [painted, said] =
        [PAINTED, (WIDTH, HEIGHT)].map(|(width, height)| format!(r#"<svg width="{width}" height="{height}""#));
    Ok(text.replacen(&painted, &said, 1))
}

/// Paints a PNG.
pub(super) fn png(paint: impl FnOnce(&Canvas<BitMapBackend<'_>>) -> anyhow::Result<()>) -> anyhow::Result<Vec<u8>> {
    let mut painted = vec![0; (PAINTED.0 * PAINTED.1 * 3) as usize];
    {
        let canvas = Canvas::new(BitMapBackend::with_buffer(&mut painted, PAINTED))?;
        paint(&canvas)?;
        canvas.0.present()?;
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, WIDTH, HEIGHT);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&averaged(&painted))?;
    writer.finish()?;
    Ok(file)
}

/// From the painting's red, green and blue bytes to the picture's.
fn averaged(painted: &[u8]) -> Vec<u8> {
    let density = DENSITY as usize;
    let row_bytes = PAINTED.0 as usize * 3;
    let mut picture = Vec::with_capacity(painted.len() / (density * density));
    for rows in painted.chunks_exact(row_bytes * density) {
        for left in (0..row_bytes).step_by(density * 3) {
            for part in 0..3 {
                let square =
                    rows.chunks_exact(row_bytes).flat_map(|row| row[left + part..].iter().step_by(3).take(density));
                let sum: u32 = square.map(|byte| u32::from(*byte)).sum();
                picture.push((sum / (DENSITY * DENSITY)) as u8);
            }
        }
    }
    picture
}

impl<DB: DrawingBackend> Canvas<DB>
where
    DB::ErrorType: 'static,
{
    fn new(backend: DB) -> anyhow::Result<Self> {
        register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
            .map_err(|_| anyhow!("the font for plots cannot be read"))?;
        let area = backend.into_drawing_area();
        area.fill(&PAPER.rgb()).context("empty paper")?;
        Ok(Self(area))
    }

    /// A line through all places.
    pub(super) fn line(&self, places: &[Place], colour: Colour, width: f64) -> anyhow::Result<()> {
        let mut path: Vec<_> = places.iter().copied().map(pixel).collect();
        path.dedup();
        let style =
            ShapeStyle { color: colour.rgb().to_rgba(), filled: false, stroke_width: scaled(width).max(1) as u32 };
        Ok(self.0.draw(&PathElement::new(path, style))?)
    }

    /// A filled rectangle between two corners.
    pub(super) fn rectangle(&self, corners: [Place; 2], colour: Colour, opacity: f64) -> anyhow::Result<()> {
        let [(left, top), (right, bottom)] = corners;
        let corners = [pixel((left.min(right), top.min(bottom))), pixel((left.max(right), top.max(bottom)))];
        Ok(self.0.draw(&Rectangle::new(corners, filled(colour, opacity)))?)
    }

    /// A filled polygon.
    pub(super) fn polygon(&self, corners: &[Place], colour: Colour, opacity: f64) -> anyhow::Result<()> {
        let corners: Vec<_> = corners.iter().copied().map(pixel).collect();
        Ok(self.0.draw(&Polygon::new(corners, filled(colour, opacity)))?)
    }

    /// A filled circle.
    pub(super) fn circle(&self, centre: Place, radius: f64, colour: Colour, opacity: f64) -> anyhow::Result<()> {
        Ok(self.0.draw(&Circle::new(pixel(centre), scaled(radius), filled(colour, opacity)))?)
    }

    /// A line of text whose letters stand at `place`.
    pub(super) fn text(&self, text: &str, place: Place, letters: Letters) -> anyhow::Result<()> {
        let (right, down) =
            if letters.upright { (letters.size * BASELINE, 0.0) } else { (0.0, letters.size * BASELINE) };
        let place = pixel((place.0 - right, place.1 - down));
        Ok(self.0.draw(&Text::new(text.to_owned(), place, letters.style()))?)
    }

    /// How wide a text is.
    pub(super) fn width(&self, text: &str, letters: Letters) -> anyhow::Result<f64> {
        let (width, _) = self.0.estimate_text_size(text, &letters.style())?;
        Ok(f64::from(width) / f64::from(DENSITY))
    }
}

impl Letters {
    fn style(self) -> TextStyle<'static> {
        let transform = if self.upright { FontTransform::Rotate270 } else { FontTransform::None };
        let font = ("sans-serif", self.size * f64::from(DENSITY)).into_font().transform(transform);
        TextStyle { font, color: self.colour.rgb().to_backend_color(), pos: Pos::new(self.from, VPos::Top) }
    }
}

fn filled(colour: Colour, opacity: f64) -> ShapeStyle {
    let color: RGBAColor = colour.rgb().mix(opacity);
    ShapeStyle { color, filled: true, stroke_width: 0 }
}

fn scaled(length: f64) -> i32 {
    (length * f64::from(DENSITY)).round() as i32
}

fn pixel((x, y): Place) -> (i32, i32) {
    (scaled(x), scaled(y))
}
