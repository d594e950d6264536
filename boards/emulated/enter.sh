# What unshare(1) runs in user and mount namespaces of its own: what is mounted here ends with the program.
# Arguments: root, home, temporary folder, QEMU, site folder or "", where that belongs, user id, program...
set -eu
root=$1 home=$2 temporary=$3 qemu=$4 site=$5 packages=$6 user=$7
shift 7
# The kernel runs Arm programs, and what they start, with this QEMU. Since Linux 6.7 a user namespace has a table of
# its own, so nothing is registered with the machine. F: opened now, as the programs' root has no QEMU.
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":aarch64:M::$magic:$mask:$qemu:FP" > /proc/sys/fs/binfmt_misc/register
# The root and the packages are shared by all boards of this release.
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --rbind /proc "$root/proc"
mount -t tmpfs none "$root/dev"
for device in null zero full random urandom; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -m 1777 "$root/dev/shm"
for file in /etc/hosts /etc/resolv.conf; do
    [ ! -e "$file" ] || mount --bind "$file" "$root$file"
done
mount --bind "$temporary" "$root/tmp"
if [ -n "$site" ]; then
    mount --bind "$site" "$root$packages"
    mount -o remount,bind,ro "$root$packages"
fi
mount --bind "$home" "$root$HOME"
# A second user namespace, in which the program is not root and has no rights over the first.
exec unshare --user --map-user="$user" --map-group="$user" --root="$root" --wd="$HOME" -- "$@"
