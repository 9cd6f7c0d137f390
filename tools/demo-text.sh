#!/usr/bin/env bash
# Real text for the demo: Debian's own documentation, packages named one by one below, unpacked with dpkg-deb and turned
# into UTF-8 text with w3m (HTML) and mandoc (manual pages), one file a chapter or page. Needs apt-get, w3m, mandoc, col.
#   tools/demo-text.sh OUTPUT      DEMO_CACHE: where downloaded packages are kept (build/cache)
set -euo pipefail
out=${1:?usage: tools/demo-text.sh OUTPUT}
cache=${DEMO_CACHE:-build/cache}

# language, package, what to convert inside it
sources="
en debian-handbook       html usr/share/doc/debian-handbook/html/en-US
zh debian-handbook       html usr/share/doc/debian-handbook/html/zh-CN
en debian-reference-en   html usr/share/debian-reference
zh debian-reference-zh-cn html usr/share/debian-reference
en debian-policy         html usr/share/doc/debian-policy
en developers-reference  html usr/share/developers-reference
en git-doc               html usr/share/doc/git/html
en manpages              man  usr/share/man
zh manpages-zh           man  usr/share/man/zh_CN
"
fail() { echo "demo-text: $*" >&2; exit 1; }
for tool in apt-get dpkg-deb w3m mandoc col; do
    command -v $tool > /dev/null || fail "$tool is missing (install it: apt-get install w3m mandoc bsdextrautils)"
done

mkdir -p "$cache" && cache=$(cd "$cache" && pwd)
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT

started=$(date +%s)
packages=$(echo "$sources" | awk 'NF {print $2}' | sort -u)
for package in $packages; do
    compgen -G "$cache/${package}_*.deb" > /dev/null || missing+=" $package"
done
if [ -n "${missing:-}" ]; then
    echo "downloading:$missing" >&2
    (cd "$cache" && apt-get -qq download $missing) || fail "a package could not be downloaded (is the network up? try: apt-get update)"
fi
echo "downloads: $(($(date +%s) - started)) s" >&2

for package in $packages; do
    dpkg-deb -x "$(compgen -G "$cache/${package}_*.deb" | sort | tail -n 1)" "$work/$package" || fail "$package: cannot be unpacked (delete $cache)"
done

# One page: to text, without navigation, picture names, over-long rulers and runs of empty lines.
tidy() {
    sed -E -e 's/[[:space:]]+$//' -e 's/^ {7}//' -e 's/ {3,}/  /g' \
        -e '/^ *([•*]|\[[0-9]+\])? *(Prev|Next|Up|Home|Previous|Index|Contents|Download the ebook|Product SiteDocumentation Site|Product Site|Documentation Site|上一页|下一页|上一頁|下一頁|后退|前进|起始页|上一级|下載電子書|下载电子书)$/d' \
        -e '/^(Prev|上一页|上一頁|Previous) .*(Next|下一页|下一頁)$/d' \
        -e 's/[-─═━_=]{20,}/--------/g' -e '/^\[[a-z0-9_-]+\]$/d' | cat -s
}
page() { # language kind file output
    case $2 in
    html) w3m -dump -cols 1000 -I UTF-8 -O UTF-8 -T text/html "$3" | tidy > "$4" ;;
    man) zcat "$3" | mandoc -K utf-8 -T utf8 -O width=1000 2> /dev/null | col -bx | sed -e '1d;$d' -e '/^ *\[中文版维护人\]/,$d' -e '/^ *跋/,$d' | tidy > "$4" || : ;;
    esac
}
export -f page tidy

rm -rf "$out" && mkdir -p "$out"
while read -r language package kind path; do
    [ -n "$language" ] || continue
    case $kind in html) names=('*.html') ;; man) names=('*.[1-8].gz' '*.[1-8]*.gz') ;; esac
    (cd "$work/$package/$path" && find . -type f \( -name "${names[0]}" -o -name "${names[-1]}" \) -size +1k) | sort |
        while read -r file; do
            name=${file#./} && name=${name%.gz} && name=${name%.html}
            printf '%s\0%s\0%s\0%s\0' "$language" "$kind" "$work/$package/$path/$file" \
                "$out/$language-$package-$(basename "$path")-${name//\//-}.txt"
        done
done <<< "$sources" | xargs -0 -n 4 -P "$(nproc)" bash -c 'page "$@"' page

# Too short to teach anything (redirects, empty indices), or not UTF-8 after all.
find "$out" -type f -size -600c -delete
for file in "$out"/*.txt; do
    iconv -f UTF-8 -t UTF-8 "$file" > /dev/null 2>&1 || rm "$file"
done

# The same chapter may exist as one page and as part of a book, or in two packages: exact copies are removed here,
# near-copies are prepare's business.
(cd "$out" && md5sum -- *.txt | sort | awk 'seen[$1]++ {print $2}' | xargs -r rm --)

total=0
for language in en zh; do
    bytes=$(cat "$out/$language"-*.txt | wc -c)
    printf '%s: %d files, %.2f MB\n' "$language" "$(ls "$out" | grep -c "^$language-")" "$(echo "$bytes" | awk '{print $1 / 1e6}')"
    total=$((total + bytes))
    declare "bytes_$language=$bytes"
done
echo "text: $(($(date +%s) - started)) s in all"
[ "$total" -ge 10000000 ] || fail "only $total bytes of text (at least 10 MB are needed)"
[ "$bytes_zh" -ge 500000 ] || fail "only $bytes_zh bytes of Chinese (at least 0.5 MB are needed)"
