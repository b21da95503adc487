//! A drawing to SVG and PNG.

use plotters::prelude::{BitMapBackend, DrawingBackend, SVGBackend, ShapeStyle, TextStyle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontTransform, RGBColor};

use super::drawing::{Align, Drawing, Point, Shape, Text};
use super::font::{BITMAP_SIZE, SVG_SIZE, font};
use super::theme::Rgb;

/// Plotters draws at whole pixels, so both files are drawn this much larger: SVG is scaled back by its view box, PNG by
/// averaging, which is also what smooths its edges.
const SCALE: u32 = 6;
/// Pixels of the PNG per CSS pixel.
const PNG_SCALE: u32 = 2;

/// What differs between the two backends.
#[derive(Clone, Copy)]
enum Output {
    Svg,
    Png,
}

impl Output {
    /// Plotters' font size for one pixel per em.
    fn text_size(self) -> f64 {
        match self {
            Self::Svg => SVG_SIZE,
            Self::Png => BITMAP_SIZE,
        }
    }

    /// How far below the baseline plotters wants the anchor of text whose vertical anchor is the centre, in em. SVG puts the
    /// baseline half an x-height (0.528 em in Roboto) below the anchor, the bitmap 0.5 − 0.5 / 1.24 of the font size.
    fn below_baseline(self) -> f64 {
        match self {
            Self::Svg => -0.264,
            Self::Png => -(0.5 - 0.5 / 1.24) * BITMAP_SIZE,
        }
    }
}

/// The drawing as an SVG document whose text is text.
pub(super) fn svg(drawing: &Drawing, title: &str) -> Result<String, String> {
    let (width, height) = size(drawing);
    let mut body = String::new();
    {
        let mut backend = SVGBackend::with_string(&mut body, (width * SCALE, height * SCALE));
        paint(&mut backend, drawing, Output::Svg)?;
        backend.present().map_err(said)?;
    }
    // The root element is ours: CSS size, round joins, and a title for screen readers.
    let content = body.split_once('>').map_or("", |(_, content)| content);
    // Plotters knows only bold; what is measured and embedded is medium. Quotes in texts are escaped, so only markup matches.
    let content = content.replace("font-weight=\"bold\"", "font-weight=\"500\"");
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {} {}\" \
         role=\"img\" stroke-linejoin=\"round\">\n<title>{}</title>{content}",
        width * SCALE,
        height * SCALE,
        escape(title)
    ))
}

/// The drawing as a PNG file at two pixels per CSS pixel.
pub(super) fn png(drawing: &Drawing) -> Result<Vec<u8>, String> {
    let (width, height) = size(drawing);
    let (wide, high) = (width * SCALE, height * SCALE);
    let mut large = vec![255u8; wide as usize * high as usize * 3];
    {
        let mut backend = BitMapBackend::with_buffer(&mut large, (wide, high));
        paint(&mut backend, drawing, Output::Png)?;
        backend.present().map_err(said)?;
    }
    let pixels = shrink(&large, wide as usize, (SCALE / PNG_SCALE) as usize);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width * PNG_SCALE, height * PNG_SCALE);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Default);
    let written =
        (encoder.write_header()).and_then(|mut writer| writer.write_image_data(&pixels).and_then(|()| writer.finish()));
    written.map_err(said)?;
    Ok(bytes)
}

fn size(drawing: &Drawing) -> (u32, u32) {
    let whole = |length: f64| length.ceil().clamp(1.0, 4000.0) as u32;
    (whole(drawing.width), whole(drawing.height))
}

/// Averages blocks of `by` × `by` pixels.
fn shrink(large: &[u8], width: usize, by: usize) -> Vec<u8> {
    let row = width * 3;
    let area = (by * by) as u16;
    let mut small = Vec::with_capacity(large.len() / (by * by));
    let mut sums = vec![0u16; row];
    for rows in large.chunks_exact(row * by) {
        sums.fill(0);
        for one in rows.chunks_exact(row) {
            for (sum, value) in sums.iter_mut().zip(one) {
                *sum += u16::from(*value);
            }
        }
        for block in sums.chunks_exact(by * 3) {
            for channel in 0..3 {
                let sum: u16 = block.iter().skip(channel).step_by(3).sum();
                small.push(((sum + area / 2) / area) as u8);
            }
        }
    }
    small
}

fn paint<B: DrawingBackend>(backend: &mut B, drawing: &Drawing, output: Output) -> Result<(), String> {
    let (width, height) = backend.get_size();
    backend
        .draw_rect(
            (0, 0),
            (width as i32, height as i32),
            &style(super::theme::WHITE, 0.0),
            true,
        )
        .map_err(said)?;
    for shape in &drawing.shapes {
        match shape {
            Shape::Line { points, width, color } => line(backend, points, &style(*color, *width), output)?,
            Shape::Polygon { points, color } => {
                backend
                    .fill_polygon(points.iter().map(|p| pixel(*p)), &style(*color, 0.0))
                    .map_err(said)?;
            }
            Shape::Circle { centre, radius, color } => {
                let radius = (radius * f64::from(SCALE)).round() as u32;
                backend
                    .draw_circle(pixel(*centre), radius, &style(*color, 0.0), true)
                    .map_err(said)?;
            }
            Shape::Text(shape) => text(backend, shape, output)?,
        }
    }
    Ok(())
}

fn line<B: DrawingBackend>(
    backend: &mut B,
    points: &[Point],
    style: &ShapeStyle,
    output: Output,
) -> Result<(), String> {
    let points: Vec<(i32, i32)> = points.iter().map(|p| pixel(*p)).collect();
    if matches!(output, Output::Svg) {
        return backend.draw_path(points, style).map_err(said);
    }
    // Plotters' bitmap joins break at sharp turns: each piece is drawn alone and the turns are rounded.
    for pair in points.windows(2) {
        backend.draw_line(pair[0], pair[1], style).map_err(said)?;
    }
    let turns = points.len().saturating_sub(2);
    for &turn in points.iter().skip(1).take(turns) {
        backend
            .draw_circle(turn, (style.stroke_width / 2).max(1), &style.filled(), true)
            .map_err(said)?;
    }
    Ok(())
}

fn text<B: DrawingBackend>(backend: &mut B, text: &Text, output: Output) -> Result<(), String> {
    let em = text.size * f64::from(SCALE);
    let transform = if text.upright {
        FontTransform::Rotate270
    } else {
        FontTransform::None
    };
    let anchor = match text.align {
        Align::Left => HPos::Left,
        Align::Centre => HPos::Center,
        Align::Right => HPos::Right,
    };
    let Rgb(r, g, b) = text.color;
    let font = font(em * output.text_size(), text.weight).transform(transform);
    let color = RGBColor(r, g, b);
    let style = TextStyle::from(font).color(&color).pos(Pos::new(anchor, VPos::Center));
    let below = output.below_baseline() * text.size;
    // Text that reads upwards has its baseline to the right of its middle.
    let at = if text.upright {
        (text.at.0 + below, text.at.1)
    } else {
        (text.at.0, text.at.1 + below)
    };
    backend.draw_text(&text.text, &style, pixel(at)).map_err(said)
}

fn pixel((x, y): Point) -> (i32, i32) {
    let whole = |length: f64| (length * f64::from(SCALE)).round().clamp(-1e6, 1e6) as i32;
    (whole(x), whole(y))
}

fn style(Rgb(r, g, b): Rgb, width: f64) -> ShapeStyle {
    ShapeStyle {
        color: RGBColor(r, g, b).into(),
        filled: true,
        stroke_width: (width * f64::from(SCALE)).round().max(2.0) as u32,
    }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn escape(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
