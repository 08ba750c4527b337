#!/usr/bin/perl
# Stands in for NVIDIA's container runtime: adds to a container the device nodes of the GPUs that its environment asks
# for, as the file `gpus` beside this program lists them (a UUID and a minor number a line), and executes runc. The file
# `mode` says what it does instead: `none` adds nothing, `all` adds every GPU.
use strict;
use warnings;
use File::Basename;
use JSON::PP;

if (grep { $_ eq '--version' } @ARGV) {
    print "NVIDIA Container Runtime version 1.18.0\ncommit: 0\nspec: 1.2.1\n\nrunc version 1.1.5\n";
    exit 0;
}

sub text {
    my ($path) = @_;
    open my $file, '<', $path or die "$path: $!";
    local $/;
    return <$file>;
}

my %gpus = map { split ' ' } split /\n/, text(dirname($0) . '/gpus');
my $mode = text(dirname($0) . '/mode');
my ($bundle) = map { $ARGV[$_ + 1] } grep { $ARGV[$_] eq '--bundle' } 0 .. $#ARGV - 1;

if ($bundle && grep { $_ eq 'create' } @ARGV) {
    my $config = decode_json(text("$bundle/config.json"));
    my ($asked) = map { /^NVIDIA_VISIBLE_DEVICES=(.*)/ ? $1 : () } @{ $config->{process}{env} };
    my @wanted = $mode eq 'none' ? () : $mode eq 'all' ? values %gpus : map { $gpus{$_} } split /,/, $asked;
    my ($uid, $gid) = @{ $config->{process}{user} }{qw(uid gid)};
    for my $minor (@wanted) {
        my %node = (type => 'c', major => 195, minor => $minor + 0);
        push @{ $config->{linux}{devices} },
            { %node, path => "/dev/nvidia$minor", fileMode => 0660, uid => $uid, gid => $gid };
        push @{ $config->{linux}{resources}{devices} }, { %node, allow => JSON::PP::true, access => 'rwm' };
    }
    open my $file, '>', "$bundle/config.json" or die $!;
    print $file encode_json($config);
    close $file;
}
exec 'runc', @ARGV;
