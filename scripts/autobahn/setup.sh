#!/bin/bash
# Builds the Autobahn WebSocket test suite, unmodified, in a separate folder. Nothing is installed
# system-wide. The suite runs on Python 2.7 only, which current Debian does not package: it is taken
# from an older release and unpacked next to the suite. About 30 s, once.
# Needs Debian's apt-get, and python3 with pip. Uses their configured mirror and package index.
#
# usage: setup.sh [FOLDER]      default: $AUTOBAHN_HOME, else ~/.cache/autobahn
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=${1:-${AUTOBAHN_HOME:-$HOME/.cache/autobahn}}
mkdir -p "$home"
# Two concurrent runs would overwrite each other.
exec 9> "$home/lock"
flock 9
[ -e "$home/ready" ] && exit 0
# The files of an interrupted run are not used.
rm -rf "$home"/{apt,root,whl,site27}
mkdir -p "$home"/apt/{lists/partial,archives/partial,etc,debs} "$home/root" "$home/whl"
cd "$home"

sources=$(find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' -o -name '*.sources' 2>/dev/null || true)
# shellcheck disable=SC2086
mirror=$(awk '/^URIs:/ && !/security/ { print $2; exit }
  /^deb / && !/security/ { for (i = 2; i <= NF; i++) if ($i ~ /^http/) { print $i; exit } }' $sources)
[ -n "$mirror" ] || { echo "setup.sh: no Debian mirror in /etc/apt" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" > apt/etc/sources.list
apt=(apt-get -o "Dir::Etc::sourcelist=$home/apt/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$home/apt/lists" -o "Dir::Cache=$home/apt" -o APT::Sandbox::User=root
  -o Acquire::Retries=3)
"${apt[@]}" update -q
(cd apt/debs && "${apt[@]}" download python2.7 python2.7-minimal libpython2.7-minimal libpython2.7-stdlib \
  libpython2.7 libpython2.7-dev python2.7-dev libssl1.1 libffi7)
for deb in apt/debs/*.deb; do dpkg -x "$deb" root; done

python3 -m pip download -q --no-deps --only-binary :all: --python-version 2.7 --implementation py --abi none \
  --platform any -d whl pip==20.3.4
# shellcheck source=python.sh
. "$here/python.sh"
pip=("${python[@]}" "$home/whl/pip-20.3.4-py2.py3-none-any.whl/pip" install -q --upgrade --no-warn-script-location
  --no-build-isolation --cert /etc/ssl/certs/ca-certificates.crt --target "$home/site27")
"${pip[@]}" setuptools==44.1.1 wheel==0.37.1 six==1.16.0
"${pip[@]}" --only-binary=cryptography,cffi txaio==2.1.0 incremental==16.10.1 Twisted==19.10.0 zope.interface==4.6.0 \
  jinja2==2.11.3 markupsafe==1.1.1 Werkzeug==1.0.1 klein==17.10.0 cryptography==3.3.2 pyOpenSSL==19.1.0 \
  service_identity==18.1.0 unittest2==1.1.0 autobahn==0.10.9
"${pip[@]}" --no-deps autobahntestsuite==25.10.1
CFLAGS="-I$home/root/usr/include/python2.7 -I$home/root/usr/include" "${pip[@]}" --no-deps wsaccel==0.6.3
touch "$home/site27/zope/__init__.py"
AUTOBAHN_HOME=$home "$here/wstest" -a
touch "$home/ready"
