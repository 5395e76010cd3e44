// Print the Khronos validator's findings on a GLB file as JSON: node validate_gltf.js mesh.glb
"use strict";

const fs = require("fs");
const validator = require("gltf-validator");

validator
  .validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))
  .then((report) => console.log(JSON.stringify(report.issues)))
  .catch((error) => {
    console.error(String(error));
    process.exitCode = 1;
  });
