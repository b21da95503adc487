//! The embedded font.

use std::sync::OnceLock;

use plotters::style::{FontDesc, FontFamily, FontStyle, register_font};

/// What SVG files ask for: the embedded font where it is installed, else the viewer's own sans serif.
const FAMILY: &str = "Roboto, Helvetica, Arial, Liberation Sans, sans-serif";
const REGULAR: &[u8] = include_bytes!("../../assets/Roboto-Regular.subset.ttf");
const MEDIUM: &[u8] = include_bytes!("../../assets/Roboto-Medium.subset.ttf");

/// Size that plotters' bitmap text needs for one pixel per em: Roboto's line height, (1900 + 500) / 2048 em.
pub(super) const BITMAP_SIZE: f64 = 2400.0 / 2048.0;
/// Size that plotters' SVG text needs for one pixel per em; it divides by this.
pub(super) const SVG_SIZE: f64 = 1.24;

/// How bold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Regular,
    Medium,
}

/// The font at a size in plotters' sense.
pub(super) fn font(size: f64, weight: Weight) -> FontDesc<'static> {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        for (style, bytes) in [(FontStyle::Normal, REGULAR), (FontStyle::Bold, MEDIUM)] {
            // Fails only for bytes that are no font; these are compiled in and drawn by every test.
            let _ = register_font(FAMILY, style, bytes);
        }
    });
    let style = match weight {
        Weight::Regular => FontStyle::Normal,
        Weight::Medium => FontStyle::Bold,
    };
    FontDesc::new(FontFamily::Name(FAMILY), size, style)
}

/// Width of a text in CSS pixels.
pub(super) fn text_width(text: &str, size: f64, weight: Weight) -> f64 {
    // Plotters answers in whole pixels, so the question is asked at a large size.
    const FINE: f64 = 16.0;
    let asked = font(size * BITMAP_SIZE * FINE, weight);
    match asked.layout_box(text) {
        Ok(((left, _), (right, _))) => f64::from(right - left) / FINE,
        Err(_) => text.chars().count() as f64 * size * 0.55,
    }
}

/// Breaks a text into lines no wider than `width`; a single word may be wider.
pub(super) fn wrap(text: &str, size: f64, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), size, Weight::Regular) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Shortens a text to a width, with an ellipsis.
pub(super) fn shorten(text: &str, size: f64, weight: Weight, width: f64) -> String {
    if text_width(text, size, weight) <= width {
        return text.to_owned();
    }
    let mut kept: Vec<char> = text.chars().collect();
    while kept.pop().is_some() {
        let short: String = kept.iter().copied().chain(['…']).collect();
        if text_width(&short, size, weight) <= width {
            return short;
        }
    }
    "…".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fonts_are_small_and_readable() {
        for bytes in [REGULAR, MEDIUM] {
            assert!(bytes.len() < 60 * 1024);
        }
        let (regular, medium) = (
            text_width("safety", 100.0, Weight::Regular),
            text_width("safety", 100.0, Weight::Medium),
        );
        assert!((250.0..320.0).contains(&regular), "{regular}");
        assert!(medium > regular, "two different fonts");
    }

    #[test]
    fn breaks_and_shortens() {
        let lines = wrap("one two three four", 12.0, 60.0);
        assert_eq!(lines.join(" "), "one two three four");
        assert!(lines.len() > 1);
        assert_eq!(shorten("short", 12.0, Weight::Regular, 100.0), "short");
        let cut = shorten("a name far too long to fit", 12.0, Weight::Regular, 60.0);
        assert!(cut.ends_with('…') && text_width(&cut, 12.0, Weight::Regular) <= 60.0);
        assert_eq!(shorten("wide", 12.0, Weight::Regular, 1.0), "…");
    }
}
