//! Draws every kind of figure from made-up tables: `cargo run -p unsay-report --example gallery -- /tmp/gallery`.

#[path = "../tests/sample/mod.rs"]
mod sample;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: gallery FOLDER")?;
    let tables = sample::tables(3);
    unsay_report::render_all(&sample::figures(), &tables, &sample::arms(), dir.as_ref())?;
    Ok(())
}
