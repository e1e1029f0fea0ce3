{
  "targets": [{
    "target_name": "pluralign",
    "sources": ["<!@(node -p \"const s=JSON.parse(require('fs').readFileSync('native/sources.json','utf8'));[...s.base,...s.ops,...s.model,...s.bindings].join(' ')\")"],
    "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")", "native"],
    "defines": ["NAPI_VERSION=9", "NAPI_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED"],
    "cflags!": ["-fno-exceptions"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20"],
    "cflags_cc": ["-std=c++20", "-O3", "-fvisibility=hidden", "-fexceptions", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-missing-field-initializers"],
    "conditions": [
      ["OS=='mac'", { "xcode_settings": { "GCC_ENABLE_CPP_EXCEPTIONS": "YES", "CLANG_CXX_LANGUAGE_STANDARD": "c++20", "MACOSX_DEPLOYMENT_TARGET": "11.0", "OTHER_CPLUSPLUSFLAGS": ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"] } }],
      ["OS=='win'", { "msbuild_toolset": "ClangCL", "msvs_settings": { "VCCLCompilerTool": { "ExceptionHandling": 1, "AdditionalOptions": ["/std:c++20"] } } }],
      ["OS=='linux'", { "ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"], "libraries": ["-ldl"] }]
    ]
  }]
}
