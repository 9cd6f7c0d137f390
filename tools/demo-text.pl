#!/usr/bin/perl
# demo-text.pl LANGUAGE FOLDER FILE...: turns HTML and manual pages into clean UTF-8 text, one document per FOLDER/*.txt.
# Called by demo-text.sh. Needs w3m (HTML) and mandoc (manual pages); nothing but perl-base.
use strict;
use warnings;

my ($language, $folder, @files) = @ARGV;
my $mark = "\x{A7}\x{A7}cut\x{A7}\x{A7}"; # where a page may be cut in two

sub slurp { my ($f) = @_; local $/; open my $h, '<:raw', $f or die "$f: $!\n"; my $s = <$h>; return $s }

# What the command prints when it reads $input (undef: nothing).
sub output_of
{
    my ($input, @command) = @_;
    my $file = "$folder/.input.$$";
    if (defined $input) {
        open my $h, '>:raw', $file or die "$file: $!\n";
        print $h $input;
        close $h or die "$file: $!\n";
        push @command, $file;
    }
    open my $p, '-|', @command or die "$command[0]: $!\n";
    local $/;
    my $text = <$p> // '';
    close $p;
    unlink $file;
    utf8::decode($text) or $text = '';
    return $text;
}

# The page without what leads to other pages.
sub html_text
{
    my ($html) = @_;
    $html =~ s{<head\b.*?</head>|<script\b.*?</script>|<style\b.*?</style>}{}gs;
    $html =~ s{.*?<div class="body"[^>]*>}{}s if $html =~ s{<div class="sphinxsidebar".*}{}s;        # Sphinx
    $html =~ s{<a class="headerlink".*?</a>}{}gs;
    $html =~ s{<ul class="docnav.*?</ul>|<div id="banner">.*?</div>|<p id="title">.*?</p>}{}gs;    # Publican
    $html =~ s{<div class="nav(header|footer)">.*?</table>.*?</div>}{}gs;                            # DocBook
    $html =~ s{\A.*?<div id="content">}{}s if $html =~ s{<div id="footer">.*}{}s;                     # Exim, git
    $html =~ s{<a class="(previous|toc|next)_page".*?</a>}{}gs;
    $html =~ s{<div class="(toc|list-of-[a-z]+|legalnotice|authorgroup|revhistory)">.*?</div>}{}gs;
    $html =~ s{<img\b[^>]*>|<hr\b[^>]*>}{}g;
    my $encoded = $mark;
    utf8::encode($encoded);
    $html =~ s{(<h[23]\b)}{<p>$encoded</p>$1}g;
    return output_of("<html><body>$html", qw(w3m -dump -T text/html -I UTF-8 -O UTF-8 -cols 5000));
}

# A manual page without its first and last line, its address block, and the seven columns before every paragraph.
sub man_text
{
    my ($file) = @_;
    my $text = output_of(undef, "mandoc", "-T", "utf8", "-O", "width=1000,indent=0", $file);
    $text =~ s/.\x08//g;
    $text =~ s/\A[^\n]*\n//;
    $text =~ s/\n[^\n]*\n*\z/\n/;
    my $last = join '|', 'COLOPHON', 'AUTHORS?', 'REPORTING BUGS', 'COPYRIGHT', "\x{4F5C}\x{8005}",
        "\x{8DCB}", "\x{7248}\x{6743}(\x{4FE1}\x{606F}|\x{6240}\x{6709})?", "\x{62A5}\x{544A}(\x{7F3A}\x{9677}|bug)",
        "\\[?\x{4E2D}\x{6587}\x{7248}[^\n]*", "\x{4E2D}\x{6587}\x{624B}\x{518C}\x{9875}[^\n]*",
        "\\(?#?\x{4E2D}\x{6587} ?man[^\n]*";
    $text =~ s/^($last)\n((?: [^\n]*)?\n)*//gm;
    $text =~ s/^(?=\S)/$mark\n/gm;
    $text =~ s/^ {7}//gm;
    return $text;
}

my $han = qr/[\x{3400}-\x{9FFF}]/;

sub clean
{
    my ($text) = @_;
    my @lines;
    for my $line (split /\n/, $text) {
        $line =~ s/[\x{00}-\x{08}\x{0B}-\x{1F}\x{7F}\x{AD}\x{200B}\x{FEFF}\x{FFFD}]//g;
        $line =~ s/\x{A0}|\t/ /g;
        next if $line =~ /^[\s\x{2500}-\x{257F}|+=_-]+$/ && $line =~ /\S/; # the lines of tables
        $line =~ s/\s*[\x{2500}-\x{257F}]+\s*/ | /g;
        $line =~ s/^( \| )+|( \| )+$//g;
        $line =~ s/(?<=\S) {2,}/ /g;
        $line =~ s/^ {4,}/    /;
        $line =~ s/\s+$//;
        next if $line =~ /linuxforum|\x{300A}\x{4E2D}\x{56FD} ?linux|\A\s*\S+ <\S+@\S+>\z/i; # who translated
        # Translations leave paragraphs that nobody translated in English.
        next if $language eq 'zh' && $line !~ $han && length($line =~ s/^\s*//r) >= 50;
        push @lines, $line;
    }
    $text = join "\n", @lines;
    $text =~ s/\n{3,}/\n\n/g;
    $text =~ s/\A\s+|\s+\z//g;
    return "$text\n";
}

# Parts of at least 4000 characters, cut at marks.
sub parts
{
    my ($text) = @_;
    my @parts = ('');
    for my $piece (split /\s*\Q$mark\E\s*/, $text) {
        push @parts, '' if length($parts[-1]) >= 4000;
        $parts[-1] .= ($parts[-1] eq '' ? '' : "\n\n") . $piece;
    }
    return @parts;
}

for my $file (@files) {
    my $text = $file =~ /\.html$/ ? html_text(slurp($file)) : man_text($file);
    my $name = $file =~ s{.*/usr/share/(doc/)?}{}r;
    $name =~ s{\.(html|gz)$}{};
    $name =~ s{/}{-}g;
    my $n = 0;
    for my $part (parts($text)) {
        $part = clean($part);
        next if length($part) < 500;
        my $count = () = $part =~ /$han/g;
        next if $language eq 'zh' && $count < 0.2 * length($part);
        my $path = sprintf '%s/%s-%02d.txt', $folder, $name, $n++;
        open my $h, '>:utf8', $path or die "$path: $!\n";
        print $h $part;
        close $h or die "$path: $!\n";
    }
}
