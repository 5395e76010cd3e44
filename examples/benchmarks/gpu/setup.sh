#!/usr/bin/env bash
# On a machine without a package index: unpacks what pack.py wrote, and installs this checkout beside it.
#   usage: setup.sh SITE PACK      then: export PYTHONPATH=SITE
# SITE gets the packages; PACK is the folder with the archives, or with what has come of them, in subfolders or not: Warp waits until
# all its pieces are there, which their checksum tells.
# A checkout without weights gets those that are in PACK. A copy of the code without its weights takes them from the checkout in the
# current folder.
set -euo pipefail
site=${1:?usage: setup.sh SITE PACK} pack=${2:?usage: setup.sh SITE PACK}
root=$(cd "$(dirname "$0")/../../.." && pwd)
mkdir -p "$site"
site=$(cd "$site" && pwd)
unpack() { cat "$@" | xz -dc | tar -x --no-same-owner -C "$site"; }
found() { find -L "$pack" -name "$1" -printf '%f %p\n' | sort | cut -d ' ' -f 2-; }
mapfile -t weights < <(found 'weights-*.tar')
mapfile -t pieces < <(found 'warp.tar.xz.??')
mapfile -t sum < <(found warp.tar.xz.sha256)
# Marked when done, so that an interrupted unpacking is done again.
if [ ! -e "$site/.site" ]; then unpack "$(found site.tar.xz)" && touch "$site/.site" & fi
if [ ! -e "$site/.warp" ] && [ "${#pieces[@]}" -gt 0 ] && [ "${#sum[@]}" -eq 1 ] &&
  [ "$(cat "${pieces[@]}" | sha256sum | cut -d ' ' -f 1)" = "$(cat "${sum[0]}")" ]; then
  unpack "${pieces[@]}" && touch "$site/.warp" &
fi
for archive in "${weights[@]}"; do
  tar -xf "$archive" --no-same-owner --skip-old-files -C "$root"
done
if [ "$PWD" != "$root" ] && [ -d distill/embedded ]; then cp -rn distill/embedded/. "$root/distill/embedded/"; fi
wait
rm -rf "$site"/distill "$site"/distill3d-*
if ! python3 -m pip install --quiet --no-index --no-deps --no-build-isolation --no-compile --upgrade --target "$site" "$root"; then
  echo "pip cannot build it, perhaps for an old setuptools; copied as setup.cfg lays it out" >&2
  cp -r "$root/distill" "$site/"
  cp -r "$root"/{guidance,renderers,samplers} "$site/distill/"
  version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$root/distill/_version.py")
  mkdir -p "$site/distill3d-$version.dist-info"
  printf 'Metadata-Version: 2.1\nName: distill3d\nVersion: %s\n' "$version" >"$site/distill3d-$version.dist-info/METADATA"
fi
cd /
PYTHONPATH=$site python3 -c "import distill, importlib.metadata as m; print('distill3d', m.version('distill3d'), distill.__file__)"
