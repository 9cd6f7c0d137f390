#!/bin/sh
# demo-text.sh OUTDIR: text to try skymoe on: OUTDIR/en and OUTDIR/zh, one UTF-8 document a file, taken from ordinary
# documentation packages of Debian, named below. They are downloaded to $DEMO_CACHE (build/cache) and unpacked there, not
# installed. Needs w3m, mandoc and perl.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 OUTDIR" >&2; exit 2; }
out=$1
cache=${DEMO_CACHE:-build/cache}
here=$(cd "$(dirname "$0")" && pwd)
packages="debian-handbook debian-reference-en debian-reference-zh-cn debian-policy developers-reference
    debian-faq debian-faq-zh-cn maint-guide maint-guide-zh-cn debmake-doc debian-edu-doc-en debian-edu-doc-zh-cn
    debian-history aptitude-doc-en exim4-doc-html git-doc manpages manpages-zh"
most_bytes_wrong="the packages have changed: name others in $0"

for tool in w3m mandoc perl dpkg-deb apt-get; do
    command -v $tool > /dev/null || { echo "$tool: is missing (apt-get install $tool)" >&2; exit 1; }
done
now() { date +%s%N; }
seconds() { echo "$1 $2" | awk '{ printf "%.1f s", ($2 - $1) / 1e9 }'; }

# A package is fetched once: the folder of its name appears when it is unpacked.
start=$(now)
mkdir -p "$cache"
missing=
for p in $packages; do [ -d "$cache/$p" ] || missing="$missing $p"; done
if [ -n "$missing" ]; then
    echo "downloading$missing"
    rm -rf "$cache/new"
    mkdir "$cache/new"
    (cd "$cache/new" && apt-get -q=2 -o APT::Sandbox::User=root download $missing) ||
        { echo "$cache: cannot download (run apt-get update, and look at the network)" >&2; exit 1; }
    for p in $missing; do
        mkdir "$cache/new/$p"
        dpkg-deb -x "$cache/new/${p}"_*.deb "$cache/new/$p"
        mv "$cache/new/$p" "$cache/$p"
    done
    rm -rf "$cache/new"
fi
fetched=$(now)
echo "download: $(seconds "$start" "$fetched")"

# The files of each language.
doc() { find "$cache/$1" -type f -name "$2" | sort; }
english()
{
    doc debian-handbook '*.html' | grep '/html/en-US/'
    doc debian-reference-en '*.html'
    doc debian-policy '*.html' | grep -v 'genindex\|search\|README\|upgrading-checklist\|perl-policy-1\|menu-policy-1'
    doc developers-reference '*.html' | grep -v '/[a-z][a-z]/\|genindex\|search\|developers-reference.html'
    doc debian-faq '*.html'
    doc maint-guide '*.html'
    doc debmake-doc '*.en.html'
    doc debian-edu-doc-en '*bookworm-manual.html'
    doc debian-history '*.en.html'
    doc aptitude-doc-en '*.html' | grep -v '/ld-'
    doc exim4-doc-html '*.html' | grep -v 'index\|doc_keyword\|/ix'
    doc git-doc '*.html' | grep -v '/git-[a-z-]*.html\|/RelNotes/\|/technical/'
    doc manpages '*.[1-8].gz' | grep '/man/man' | grep -v '/iso_8859\|/cp[0-9]'
}
chinese()
{
    doc debian-handbook '*.html' | grep '/html/zh-CN/'
    doc debian-reference-zh-cn '*.html'
    doc debian-faq-zh-cn '*.html'
    doc maint-guide-zh-cn '*.html'
    doc debmake-doc '*.zh-cn.html'
    doc debian-edu-doc-zh-cn '*bookworm-manual.html'
    doc manpages-zh '*.gz' | grep '/zh_CN/'
}
convert() # LANGUAGE, files on stdin
{
    rm -rf "${out:?}/$1"
    mkdir -p "$out/$1"
    tr '\n' '\0' | xargs -0 -n 24 -P "$(nproc)" perl "$here/demo-text.pl" "$1" "$out/$1"
}
english | convert en
chinese | convert zh
echo "conversion: $(seconds "$fetched" "$(now)")"

bytes() { find "$@" -type f -name '*.txt' -exec cat {} + | wc -c; }
en=$(bytes "$out/en")
zh=$(bytes "$out/zh")
echo "English: $en bytes in $(ls "$out/en" | wc -l) documents"
echo "Chinese: $zh bytes in $(ls "$out/zh" | wc -l) documents"
if [ $((en + zh)) -lt 10000000 ] || [ "$zh" -lt 500000 ]; then
    echo "$out: the text has $((en + zh)) bytes, $zh of them Chinese, fewer than 10000000 and 500000 ($most_bytes_wrong)" >&2
    exit 1
fi
