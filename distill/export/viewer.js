// A small viewer for one GLB: texture or vertex colours under a soft light, orbit by mouse, touch or keys.
"use strict";

const VERTEX_SHADER = `#version 300 es
uniform mat4 u_camera;
in vec3 a_position; in vec3 a_normal; in vec2 a_uv; in vec4 a_colour;
out vec3 v_normal; out vec2 v_uv; out vec4 v_colour;
void main() {
  v_normal = a_normal; v_uv = a_uv; v_colour = a_colour;
  gl_Position = u_camera * vec4(a_position, 1.0);
}`;

// The light comes from above left of the camera and turns with it; the colours already hold most shading.
const FRAGMENT_SHADER = `#version 300 es
precision highp float;
uniform sampler2D u_texture; uniform bool u_textured, u_clay, u_blended; uniform vec3 u_right, u_up, u_back;
uniform vec4 u_factor; uniform float u_cutoff;
in vec3 v_normal; in vec2 v_uv; in vec4 v_colour;
out vec4 colour;
vec3 linear(vec3 s) { return mix(s / 12.92, pow((s + 0.055) / 1.055, vec3(2.4)), step(0.04045, s)); }
vec3 encoded(vec3 l) { return mix(12.92 * l, 1.055 * pow(l, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, l)); }
void main() {
  vec3 n = normalize(v_normal);
  vec3 key = normalize(-0.5 * u_right + 0.8 * u_up + 0.9 * u_back);
  // glTF's base colour: the product of factor, texture (sRGB) and colours of vertices (linear).
  vec4 base = u_textured ? texture(u_texture, v_uv) : vec4(1.0);
  base = vec4(linear(base.rgb), base.a) * v_colour * u_factor;
  if (base.a < u_cutoff) discard;
  float alpha = u_blended ? clamp(base.a, 0.0, 1.0) : 1.0;
  vec3 srgb = encoded(clamp(base.rgb, 0.0, 1.0));
  float soft = 0.5 + 0.5 * dot(n, key);
  float light = u_clay ? 0.2 + 0.85 * soft * soft : 0.7 + 0.32 * soft;
  colour = vec4(min((u_clay ? vec3(0.75, 0.73, 0.70) : srgb) * light, 1.0), 1.0) * alpha;
}`;

// Component types and counts of glTF accessors.
const ARRAYS = { 5120: Int8Array, 5121: Uint8Array, 5122: Int16Array, 5123: Uint16Array, 5125: Uint32Array,
  5126: Float32Array };
const COUNTS = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };

// Matrices of 4 x 4, column by column.
function product(a, b) {
  return b.map((_, i) => [0, 1, 2, 3].reduce((sum, k) => sum + a[4 * k + (i % 4)] * b[i - (i % 4) + k], 0));
}

function matrixOf({ matrix, translation: t = [0, 0, 0], rotation: [x, y, z, w] = [0, 0, 0, 1], scale: s = [1, 1, 1] }) {
  if (matrix) return matrix;
  const columns = [
    [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)],
    [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)],
    [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)],
  ];
  return [...columns.flatMap((column, i) => [...column.map((value) => value * s[i]), 0]), ...t, 1];
}

function moved(data, m) {
  const found = new Float32Array(data.length);
  for (let i = 0; i < data.length; i += 3)
    for (let row = 0; row < 3; row++)
      found[i + row] = m[row] * data[i] + m[4 + row] * data[i + 1] + m[8 + row] * data[i + 2] + m[12 + row];
  return found;
}

// Normals of the faces around each vertex, by their areas, for files that have none.
function normalsOf(position, indices) {
  const found = new Float32Array(position.length);
  for (let i = 0; i < indices.length; i += 3) {
    const [a, b, c] = [0, 1, 2].map((k) => 3 * indices[i + k]);
    const u = [0, 1, 2].map((k) => position[b + k] - position[a + k]);
    const v = [0, 1, 2].map((k) => position[c + k] - position[a + k]);
    const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) found[corner + k] += n[k];
  }
  return found;
}

// The inverse's transpose of the upper 3 x 3 part, except for its scale: what turns normals.
function forNormals(m) {
  const minor = (r, c) => {
    const [r1, r2, c1, c2] = [(r + 1) % 3, (r + 2) % 3, (c + 1) % 3, (c + 2) % 3];
    return m[4 * c1 + r1] * m[4 * c2 + r2] - m[4 * c2 + r1] * m[4 * c1 + r2];
  };
  const mirrored = m[0] * minor(0, 0) + m[1] * minor(1, 0) + m[2] * minor(2, 0) < 0 ? -1 : 1;
  const column = (c) => [0, 1, 2].map((r) => mirrored * minor(r, c));
  return [0, 1, 2].flatMap((c) => [...column(c), 0]).concat([0, 0, 0, 1]);
}

// Triangles of every node, in the frame of the whole.
function parseGlb(buffer) {
  const words = new DataView(buffer);
  if (words.getUint32(0, true) !== 0x46546c67) throw new Error("not a GLB file");
  const jsonLength = words.getUint32(12, true);
  const json = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, jsonLength)));
  const start = 28 + jsonLength; // past the header of the binary chunk
  const slice = (view, extra = 0) => start + (view.byteOffset || 0) + extra;
  const accessor = (index) => {
    if (index === undefined) return null;
    const a = json.accessors[index];
    const size = COUNTS[a.type];
    const offset = slice(json.bufferViews[a.bufferView], a.byteOffset || 0);
    const bytes = ARRAYS[a.componentType].BYTES_PER_ELEMENT;
    const data = new ARRAYS[a.componentType](buffer.slice(offset, offset + a.count * size * bytes));
    return { data, size, type: a.componentType, normalized: Boolean(a.normalized) };
  };
  const imageOf = (material) => {
    const texture = json.materials?.[material]?.pbrMetallicRoughness?.baseColorTexture;
    const image = texture && json.images[json.textures[texture.index].source];
    const view = image && json.bufferViews[image.bufferView];
    return view ? new Blob([new Uint8Array(buffer, slice(view), view.byteLength)]) : null;
  };
  // glTF's alpha counts in two of its three modes.
  const alphaOf = (material) => {
    const { alphaMode, alphaCutoff = 0.5 } = json.materials?.[material] ?? {};
    return { cutoff: alphaMode === "MASK" ? alphaCutoff : 0, blended: alphaMode === "BLEND" };
  };
  const factorOf = (material) => json.materials?.[material]?.pbrMetallicRoughness?.baseColorFactor;
  const floats = (data) => ({ data, size: 3, type: 5126, normalized: false });
  const found = [];
  const visit = (index, above) => {
    const node = json.nodes[index], matrix = product(above, matrixOf(node));
    for (const primitive of node.mesh === undefined ? [] : json.meshes[node.mesh].primitives) {
      const { POSITION, NORMAL, TEXCOORD_0, COLOR_0 } = primitive.attributes;
      if ((primitive.mode ?? 4) !== 4 || primitive.indices === undefined) continue;
      const position = moved(accessor(POSITION).data, matrix), indices = accessor(primitive.indices);
      const normal = NORMAL === undefined ? normalsOf(position, indices.data)
        : moved(accessor(NORMAL).data, forNormals(matrix));
      found.push({ position: floats(position), normal: floats(normal), uv: accessor(TEXCOORD_0),
        colour: accessor(COLOR_0), factor: factorOf(primitive.material), indices, ...alphaOf(primitive.material),
        image: TEXCOORD_0 === undefined ? null : imageOf(primitive.material) });
    }
    for (const child of node.children || []) visit(child, matrix);
  };
  for (const root of json.scenes[json.scene || 0].nodes) visit(root, [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
  if (!found.length) throw new Error("the file has no triangles");
  return found;
}

function makeProgram(gl) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX_SHADER], [gl.FRAGMENT_SHADER, FRAGMENT_SHADER]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return program;
}

function uploadMesh(gl, program, model) {
  model.array = gl.createVertexArray();
  gl.bindVertexArray(model.array);
  const attributes = { a_position: model.position, a_normal: model.normal, a_uv: model.uv, a_colour: model.colour };
  for (const [name, source] of Object.entries(attributes)) {
    const place = gl.getAttribLocation(program, name);
    if (place < 0) continue;
    if (!source) continue; // each model sets it when it is drawn
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, source.data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, source.size, source.type, source.normalized, 0, 0);
  }
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, model.indices.data, gl.STATIC_DRAW);
}

async function uploadTexture(gl, model) {
  const picture = await createImageBitmap(model.image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  model.texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, model.texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, picture);
  // No mipmaps: at small sizes they would mix colours of charts that lie apart on the mesh.
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
  const wrap = model.uv.data.some((value) => value < 0 || value > 1) ? gl.REPEAT : gl.CLAMP_TO_EDGE;
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, wrap);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, wrap);
}

// The linear colour and the alpha that multiply all others; what has no colour at all is light grey.
function factor(model) {
  if (model.factor) return model.factor;
  return model.image || model.colour ? [1, 1, 1, 1] : [0.8, 0.8, 0.8, 1];
}

// Centre of the bounding box and radius of the sphere around it.
function bounds(models) {
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  for (const { position } of models)
    position.data.forEach((value, i) => {
      low[i % 3] = Math.min(low[i % 3], value); high[i % 3] = Math.max(high[i % 3], value);
    });
  return { centre: low.map((value, i) => (value + high[i]) / 2),
    radius: Math.hypot(...low.map((value, i) => high[i] - value)) / 2 || 1 };
}

// A camera on a sphere around the centre, y up, that looks at +z's side at yaw 0; column-major matrices. At zoom 1 the sphere around
// the box is just in the picture, whichever way it is turned.
function camera(state, { centre, radius }, aspect) {
  const [cy, sy] = [Math.cos(state.yaw), Math.sin(state.yaw)];
  const [cp, sp] = [Math.cos(state.pitch), Math.sin(state.pitch)];
  const right = [cy, 0, -sy], up = [-sy * sp, cp, -cy * sp], back = [sy * cp, sp, cy * cp];
  const half = Math.PI / 9; // of the vertical field of view
  const distance = state.zoom * 1.02 * radius / Math.sin(Math.atan(Math.tan(half) * Math.min(1, aspect)));
  const dot = (a) => a[0] * centre[0] + a[1] * centre[1] + a[2] * centre[2];
  const focal = 1 / Math.tan(half);
  const near = Math.max(distance - 1.1 * radius, 0.01 * radius), far = distance + 1.1 * radius;
  const a = (far + near) / (near - far), b = (2 * far * near) / (near - far);
  const depth = -dot(back) - distance;
  const matrix = [];
  for (let i = 0; i < 3; i++) matrix.push((focal / aspect) * right[i], focal * up[i], a * back[i], -back[i]);
  matrix.push((-focal / aspect) * dot(right), -focal * dot(up), a * depth + b, -depth);
  return { matrix, right, up, back };
}

function spin(state, on) {
  state.spin = on;
  document.getElementById("spin").setAttribute("aria-pressed", String(on));
}

function listen(canvas, state) {
  const pointers = new Map();
  const spread = () => { const [p, q] = [...pointers.values()]; return Math.hypot(p.x - q.x, p.y - q.y); };
  const turn = (dx, dy) => {
    spin(state, false);
    state.yaw -= dx * 0.01;
    state.pitch = Math.min(1.5, Math.max(-1.5, state.pitch + dy * 0.01));
  };
  const zoom = (factor) => { state.zoom = Math.min(3, Math.max(0.35, state.zoom * factor)); };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const now = { x: event.clientX, y: event.clientY };
    const before = pointers.size === 2 && spread();
    pointers.set(event.pointerId, now);
    if (pointers.size === 1) turn(now.x - last.x, now.y - last.y);
    if (pointers.size === 2) zoom(before / Math.max(spread(), 1));
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(event.deltaY * 0.001));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] }[event.key];
    if (step) turn(...step);
    else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 0.9 : 1.1);
    else return;
    event.preventDefault();
  });
}

async function view(canvas, buffer, state) {
  const gl = canvas.getContext("webgl2", { antialias: true, alpha: true });
  if (!gl) throw new Error("this browser has no WebGL 2");
  const models = parseGlb(buffer);
  const program = makeProgram(gl);
  const uniform = (name) => gl.getUniformLocation(program, name);
  for (const model of models) {
    uploadMesh(gl, program, model);
    if (model.image) await uploadTexture(gl, model);
  }
  const box = bounds(models);
  models.sort((one, other) => one.blended - other.blended); // over what is behind them
  listen(canvas, state);
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const colour = gl.getAttribLocation(program, "a_colour");
  let last = performance.now();
  const draw = (now) => {
    if (state.spin) state.yaw += Math.min(now - last, 100) * 0.0004;
    last = now;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.depthMask(true); // without which the depth is not cleared
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const eye = camera(state, box, canvas.width / canvas.height);
    gl.uniformMatrix4fv(uniform("u_camera"), false, eye.matrix);
    for (const axis of ["right", "up", "back"]) gl.uniform3fv(uniform("u_" + axis), eye[axis]);
    gl.uniform1i(uniform("u_clay"), state.clay ? 1 : 0);
    for (const model of models) {
      gl.bindVertexArray(model.array);
      gl.bindTexture(gl.TEXTURE_2D, model.texture || null);
      gl.uniform1i(uniform("u_textured"), model.texture ? 1 : 0);
      gl.uniform4fv(uniform("u_factor"), factor(model));
      gl.uniform1f(uniform("u_cutoff"), model.cutoff);
      gl.uniform1i(uniform("u_blended"), model.blended ? 1 : 0);
      gl.depthMask(!model.blended);
      if (model.blended) gl.enable(gl.BLEND);
      else gl.disable(gl.BLEND);
      if (colour >= 0 && !model.colour) gl.vertexAttrib4fv(colour, [1, 1, 1, 1]);
      gl.drawElements(gl.TRIANGLES, model.indices.data.length, model.indices.type, 0);
    }
    requestAnimationFrame(draw);
  };
  requestAnimationFrame(draw);
}

function start() {
  const canvas = document.getElementById("viewer");
  if (!canvas) return;
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = { yaw: 0.5, pitch: 0.25, zoom: 1, spin: !still, clay: false };
  const file = document.getElementById("glb");
  const text = atob(file.textContent.trim());
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  document.getElementById("clay").addEventListener("click", (event) => {
    state.clay = !state.clay;
    event.target.setAttribute("aria-pressed", String(state.clay));
  });
  spin(state, state.spin);
  document.getElementById("spin").addEventListener("click", () => spin(state, !state.spin));
  document.getElementById("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], { type: "model/gltf-binary" }));
    link.download = file.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  view(canvas, bytes.buffer, state).catch((error) => {
    for (const name of ["spin", "clay"]) document.getElementById(name).hidden = true;
    canvas.hidden = true;
    document.getElementById("viewer-error").textContent = "The 3D view is not available: " + error.message;
  });
}

start();
